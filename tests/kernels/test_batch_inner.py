"""The generator with the batch as the innermost axis equals the generator, for every architecture and precision."""

import pytest
import torch
from torch import Tensor, nn

from ebmscale.kernels import forms
from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.networks import ARCHITECTURES, Generator, build_generator
from ebmscale.seeds import torch_generator

DIM = 5
SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "svhn": (3, 32, 32),
    "cifar10": (3, 32, 32),
    "celeba64": (3, 64, 64),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.06}
"""Relative difference, in norm, of images and of gradients; in bf16 both forms are about as far from fp32."""


def make(form: str, dtype: torch.dtype, width: int = 3) -> Generator:
    generator = build_generator(DIM, SHAPES[form], width, form, generator=torch_generator(0, "test"))
    with torch.no_grad():
        for name, weight in generator.named_parameters():  # biases start at zero, and a wrong one would not show
            if name.endswith("bias"):
                weight.normal_(std=0.3, generator=torch_generator(1, name))
    return generator.to(dtype).requires_grad_(False)


def latents(num: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def image_and_gradient(generator: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_(True)
    image = generator(z)
    weights = torch.linspace(-1, 2, image[0].numel(), dtype=image.dtype).view(image.shape[1:])
    return image.detach().double(), torch.autograd.grad((image * weights).sum(), z)[0].double()


def assert_equal(generator: nn.Module, other: nn.Module, z: Tensor) -> None:
    for got, wanted in zip(image_and_gradient(other, z), image_and_gradient(generator, z), strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= TOLERANCE[z.dtype] * wanted.norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("num_rows", [1, 7])
def test_images_and_gradients_are_the_generators(form: str, dtype: torch.dtype, num_rows: int) -> None:
    generator = make(form, dtype)
    assert_equal(generator, BatchInnerGenerator(generator), latents(num_rows, dtype))


def test_every_form_is_known() -> None:
    for name, form in ARCHITECTURES.items():
        assert BatchInnerGenerator.supports(Generator(DIM, (3, form.size, form.size), 1, name))
    assert not BatchInnerGenerator.supports(nn.Linear(2, 2))


def test_latents_that_are_not_contiguous_and_weights_that_are_channels_last() -> None:
    generator = make("svhn", torch.float32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    z = latents(2 * DIM, torch.float32)[:, :DIM].T.contiguous().T[::2]
    assert not z.is_contiguous()
    assert_equal(generator, BatchInnerGenerator(generator), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_are_those_of_the_generator_loaded_from(dtype: torch.dtype) -> None:
    first, second = make("svhn", dtype), make("svhn", dtype)
    with torch.no_grad():
        for weight in second.parameters():
            weight.mul_(-1.5).add_(0.01)
    form = BatchInnerGenerator(first)
    for num_rows in (4, 9, 4):  # kernels and their layouts of the weights depend on the number of rows
        assert_equal(first, form, latents(num_rows, dtype))
    form.load(second)
    assert_equal(second, form, latents(4, dtype))


def test_a_form_by_name_is_taken_and_small_passes_are_left_alone() -> None:
    generator = make("digits", torch.float32)
    assert forms.choose_form(generator, DIM, 4, "batch_inner") == "batch_inner"
    assert forms.choose_form(generator, DIM, 4, "plain") == "plain"
    assert forms.choose_form(generator, DIM, 4) == "plain"
    assert forms.choose_form(nn.Linear(DIM, 3), DIM, 4, "batch_inner") == "plain"


def test_the_faster_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make("digits", torch.float32)
    for other_s, chosen in ((0.1, "batch_inner"), (0.95, "plain"), (2.0, "plain")):
        seconds = {Generator: 1.0, BatchInnerGenerator: other_s}
        monkeypatch.setattr(forms, "_pass_seconds", lambda form, z, repeats, of=seconds: of[type(form)])
        assert forms.choose_form(generator, DIM, 4) == chosen


def test_a_form_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(BatchInnerGenerator, "forward", lambda self, z: z[:, :1, None, None].expand(-1, 1, 8, 8))
    assert forms.choose_form(make("digits", torch.float32), DIM, 4, "batch_inner") == "plain"
    assert "differ" in caplog.text
