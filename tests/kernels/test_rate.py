"""Counted FLOPs equal those of the formula, for every operator."""

import torch

from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.kernels.rate import FlopCount, matrix_rate
from ebmscale.networks import build_generator
from ebmscale.seeds import torch_generator


def test_a_product_and_its_gradient() -> None:
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3)
    with FlopCount() as count:
        torch.autograd.grad((a @ b).sum(), a)
    assert count.total == 2 * 2 * 5 * 7 * 3


def test_every_form_of_the_generator_counts_the_same() -> None:
    generator = build_generator(100, (3, 32, 32), 8, "svhn", generator=torch_generator(0, "test")).requires_grad_(False)
    totals = []
    for form in (generator, BatchInnerGenerator(generator)):
        z = torch.randn(2, 100, requires_grad=True)
        with FlopCount() as count:
            torch.autograd.grad(form(z).sum(), z)
        totals.append(count.total)
    per_image = 2 * (100 * 64 * 16 + 64 * 32 * 16 * 16 + 32 * 16 * 16 * 64 + 16 * 3 * 16 * 256)
    assert totals == [2 * 2 * per_image] * 2


def test_a_rate_is_positive() -> None:
    assert matrix_rate(torch.float32, side=64) > 0
