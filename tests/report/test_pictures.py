"""Grids are exact to the pixel. Charts are self-contained SVG, with the same bytes every time."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ebmscale.density.langevin import ChainTrace
from ebmscale.model.image_grid import GAP, image_grid
from ebmscale.report import pictures
from ebmscale.report.pictures import Curve, Mark


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_grid_is_pixel_exact():
    images = torch.tensor([[-1.0, 1.0], [0.0, -0.5], [1.0, -1.0]]).view(3, 1, 1, 2)  # three images of 1 x 2 pixels
    got = pixels(image_grid(images, columns=2, scale=3))
    row = [0] * 3 + [255] * 3
    expected = np.full((3 + 2 + 3, 6 + 2 + 6), 255)
    expected[:3, :6] = row
    expected[:3, 8:] = [128] * 3 + [64] * 3  # the middle is 127.5, and rounds to even
    expected[5:, :6] = row[::-1]
    np.testing.assert_array_equal(got, expected)


def test_grid_keeps_colours():
    images = torch.full((2, 3, 2, 2), -1.0)
    images[0, 0], images[1, 2] = 1, 1
    got = pixels(image_grid(images, columns=2))
    assert got.shape == (2, 2 + GAP + 2, 3)
    assert (got[:, :2] == [255, 0, 0]).all()
    assert (got[:, 2 : 2 + GAP] == 255).all()
    assert (got[:, -2:] == [0, 0, 255]).all()


@pytest.mark.parametrize(("channels", "shown"), [(1, 2), (2, 2), (3, 3), (4, 3)])
def test_grid_takes_any_number_of_channels(channels, shown):
    assert pixels(image_grid(torch.zeros(1, channels, 4, 4), columns=1)).ndim == shown


def test_grid_takes_values_that_are_no_pixels():
    images = torch.tensor([5.0, -7.0, math.nan]).view(1, 1, 1, 3)
    assert pixels(image_grid(images, columns=1)).tolist() == [[255, 0, 128]]


def test_data_uri():
    assert pictures.data_uri(b"abc", "image/png") == f"data:image/png;base64,{base64.b64encode(b'abc').decode()}"


def trace(num_steps):
    return ChainTrace(*torch.rand(3, num_steps, generator=torch.Generator().manual_seed(0)))


CHARTS = {
    "energies": lambda: pictures.energy_histogram(torch.arange(50.0), torch.arange(50.0) - 3),
    "equal energies": lambda: pictures.energy_histogram(torch.ones(9), torch.ones(9)),
    "infinite energies": lambda: pictures.energy_histogram(torch.full((9,), math.inf), torch.full((9,), math.nan)),
    "timeline": lambda: pictures.timeline(
        [Curve([1, 2], [0.1, math.nan], band=[0.1, 0.1]), Curve([3, 4], [0.1, 0.2], "b")],
        [Mark(1, kind) for kind in pictures.MARK_COLOURS],
        {1: 0, 2: 3},
        4,
        level=(0.5, "half"),
    ),
    "empty timeline": lambda: pictures.timeline([], [], {}, 0),
    "chain": lambda: pictures.chain_chart(trace(20)),
    "chain of one step": lambda: pictures.chain_chart(trace(1)),
    "shares": lambda: pictures.fraction_chart([0, 10, 20], {"a": [0.5, 0.2], "b": [0.5, 0.8]}),
    "speed": lambda: pictures.speed_chart([0, 10], [3.0]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CHARTS)
def test_chart_is_the_same_svg_every_time(name):
    svg = CHARTS[name]()
    assert svg == CHARTS[name]()
    assert b"<svg" in svg
    assert b"<image" not in svg
    assert len(svg) < 60_000
