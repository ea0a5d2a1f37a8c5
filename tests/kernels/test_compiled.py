"""The replacement layers of the compiled generator against the original ones; on a GPU the whole generator."""

from functools import partial

import pytest
import torch
from torch import nn

from ebmscale.kernels import forms
from ebmscale.kernels.compiled import TransposedAsProduct, compiled, with_products
from ebmscale.networks import Generator, build, build_generator, image_generator

DIM = 6


def make(form: str, shape: tuple[int, int, int], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Generator:
    generator = build_generator(DIM, shape, 3, form, generator=torch.Generator().manual_seed(0))
    return generator.to(device, dtype).requires_grad_(False)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "size"),
    [(8, 3, 3, 1, 1, (5, 6)), (8, 3, 4, 2, 1, (5, 6)), (1, 1, 4, 2, 1, (1, 1)), (5, 2, 5, 3, 0, (4, 2))],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_product_is_the_transposed_convolution(
    channels: int, outputs: int, kernel: int, stride: int, padding: int, size: tuple[int, int], rows: int
) -> None:
    layer = nn.ConvTranspose2d(channels, outputs, kernel, stride, padding).double()
    x = torch.randn(rows, channels, *size, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().to(memory_format=torch.channels_last).requires_grad_(True)
    wanted, got = layer(x), TransposedAsProduct(layer)(other)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    (wanted**2).sum().backward()
    (got**2).sum().backward()
    torch.testing.assert_close(other.grad, x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("form", "shape"), [("svhn", (3, 32, 32)), ("cifar10", (3, 32, 32)), ("mnist", (1, 28, 28))])
def test_a_generator_with_products_is_the_generator_as_its_weights_change(
    form: str, shape: tuple[int, int, int]
) -> None:
    generator = make(form, shape).double()
    other = with_products(generator)
    assert sum(isinstance(layer, TransposedAsProduct) for layer in other) >= 1
    z = torch.randn(4, DIM, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(other(z), generator(z), rtol=1e-9, atol=1e-9)
        for weight in generator.parameters():
            weight.mul_(1.1)


def any_form(name: str, top: int) -> nn.Module:
    generator = build(lambda: image_generator(DIM, (3, 32, 32), 3, name, top), torch.Generator().manual_seed(0))
    return generator.requires_grad_(False)


@pytest.mark.parametrize(("name", "top"), [("svhn", 2), ("residual", 0), ("residual", 2)])
def test_every_form_is_one_graph(name: str, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A break in the graph would leave a part of it as it is."""
    generator, z = any_form(name, top), torch.randn(4, DIM)
    eager = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", eager)
    torch.testing.assert_close(compiled(generator)(z), generator(z), rtol=1e-5, atol=1e-5)


def test_a_form_is_for_one_kind_of_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert forms.is_for("plain", cpu)
    assert forms.is_for("plain", cuda)
    assert [forms.is_for("batch_inner", device) for device in (cpu, cuda)] == [True, False]
    assert [forms.is_for("compiled", device) for device in (cpu, cuda)] == [False, True]


def test_a_generator_that_cannot_be_compiled_stays_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler")

    monkeypatch.setattr(forms, "compiled", lambda source: Broken())
    assert forms.choose_form(make("svhn", (3, 32, 32)), DIM, 4, "compiled") == "plain"
    assert "cannot be compiled here (RuntimeError)" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "top"), [("svhn", 0), ("svhn", 2), ("residual", 0), ("residual", 2)])
def test_a_generator_is_compiled_on_a_gpu(dtype: torch.dtype, name: str, top: int) -> None:
    generator = any_form(name, top).to("cuda", dtype)
    assert forms.choose_form(generator, DIM, 5, "compiled") == "compiled"
    form = forms.form_of("compiled", generator)
    for rows in (5, 2, 7):  # each number of rows is compiled by itself
        z = torch.randn(rows, DIM, device="cuda", dtype=dtype)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(form(z), generator(z), rtol=tolerance, atol=tolerance)
        for weight in generator.parameters():
            weight.mul_(1.1)
