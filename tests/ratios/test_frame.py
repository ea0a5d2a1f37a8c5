"""Samples far from 0, of any type: the ratio of the numbers that were given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.density.prior import StandardNormal
from ebmscale.errors import DataError
from ebmscale.ratios import OutOfDistribution, fit_ratio, mutual_information
from ebmscale.ratios.read import read_array
from ebmscale.ratios.samples import Frame, as_pair, as_samples
from tests.ratios.test_fit import QUICK

LINEAR = replace(QUICK, max_stages=1, significance=1e-9)
RNG = np.random.default_rng(0)
P, Q = RNG.normal(size=(600, 2)), RNG.normal(size=(600, 2)) + np.array([1, 0])
FAR = np.array([1.7e9, 0])


@pytest.fixture(scope="module")
def near():
    return fit_ratio(P, Q, seed=1, settings=LINEAR)


@pytest.mark.parametrize(("scale", "offset"), [(1, 1.7e9), (1, -1e12), (1e-30, 1e-24), (1e39, -3e45), (1e200, 0)])
def test_the_ratio_does_not_depend_on_where_zero_is(near, scale, offset):
    move = np.array([offset, 0])
    fitted = fit_ratio(P * scale + move, Q * scale + move, seed=1, settings=LINEAR)
    x = np.stack([np.linspace(-1, 2, 50), np.zeros(50)], axis=1)
    assert fitted.kl == pytest.approx(near.kl, abs=0.02)
    assert torch.allclose(fitted.log_ratio(x * scale + move), near.log_ratio(x), atol=0.02)
    assert float(near.log_ratio(x)[-1] - near.log_ratio(x)[0]) > 1  # in truth 3


def test_nor_does_it_by_way_of_a_gaussian():
    move = FAR
    fitted = fit_ratio(P + move, Q + move, base="gaussian", seed=1, settings=LINEAR)
    found = [fitted.log_ratio(x + move) for x in (P, Q)]
    assert float(found[1].mean() - found[0].mean()) > 0.5  # in truth 1


def test_a_log_density_is_one_of_the_points_that_were_given():
    near, far = (
        OutOfDistribution.fitted(P * scale + move, seed=1, settings=LINEAR) for scale, move in ((1, 0), (1e9, 1e15))
    )
    points = P[:20]
    expected = near.score(points) + 2 * np.log(1e9)
    assert torch.allclose(far.score(points * 1e9 + 1e15), expected, atol=0.1)
    with pytest.raises(DataError, match=r"shape \(4, 3\)"):
        near.score(np.ones((4, 3)))


def test_mutual_information_of_time_stamps():
    y = 0.8 * P[:, :1] + 0.6 * P[:, 1:]
    found = mutual_information(P[:, :1] + 1.7e9, y, seed=0, settings=LINEAR)
    assert found.nats == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.25)


@pytest.mark.parametrize("kind", [">f4", "<f8", "f2", np.longdouble, "f4"])
def test_the_type_of_floats_does_not_matter(kind):
    """Float16 rounds the samples themselves."""
    p, q, pixels = as_pair(P.astype(kind), np.asfortranarray(Q).astype(kind))
    assert not pixels
    assert p.dtype == q.dtype == torch.float64
    assert np.allclose(p, P, atol=4e-3)
    assert np.allclose(q, Q, atol=4e-3)


def test_bytes_are_numbers_beside_numbers_and_pixels_beside_pixels():
    bytes_ = RNG.integers(0, 256, (500, 2), dtype=np.uint8)
    pixels = bytes_ / 127.5 - 1
    for kind in ("i4", ">i8", "u8", "f8"):
        p, q, are_pixels = as_pair(bytes_.astype(kind), bytes_)
        assert torch.equal(p, q)
        assert not are_pixels
    for other in (pixels, pixels.astype(np.float32), bytes_):
        p, q, are_pixels = as_pair(other, bytes_)
        assert torch.allclose(p, q, atol=1e-6)
        assert are_pixels
        assert float(q.abs().max()) <= 1
    fitted = fit_ratio(pixels[:250], bytes_[250:], seed=0, settings=LINEAR)
    assert torch.allclose(fitted.log_ratio(bytes_), fitted.log_ratio(pixels), atol=1e-4)
    fitted = fit_ratio(bytes_[:250].astype(int), bytes_[250:], seed=0, settings=LINEAR)
    assert torch.allclose(fitted.log_ratio(bytes_), fitted.log_ratio(bytes_.astype(int)), atol=1e-4)


@pytest.mark.parametrize(
    ("p", "q", "said"),
    [
        (P + 1e9, P * 1e-9, "p and q do not overlap|spreads too little"),
        (P * 1e39, Q, "spreads too little"),
        (StandardNormal(2), Q + 1.7e9, "q spreads too little in coordinate"),
        (P + 1e16, Q + 1e16, "64-bit numbers do not tell its samples apart"),
        (P + 1j, Q, "p has complex numbers"),
        (P, np.ma.masked_greater(Q, 2), "q has masked values"),
        (P.astype(str), Q, "p is not an array of numbers"),
    ],
)
def test_samples_that_cannot_be_held_are_refused_for_that_reason(p, q, said):
    with pytest.raises(DataError, match=said):
        fit_ratio(p, q, settings=LINEAR)


def test_a_constant_coordinate_has_no_digits_to_lose():
    samples = as_samples(np.concatenate([P, np.full((600, 1), 0.1)], axis=1), "p")
    inside = Frame.of({"p": samples}).inside(samples)
    assert inside.dtype == torch.float32
    assert float(inside[:, 2].abs().max()) == 0


def test_files_of_every_type_are_read_and_the_command_refuses_what_it_cannot_use(tmp_path):
    for number, values in enumerate((P.astype(">f8"), np.asfortranarray(P), P.astype(np.longdouble))):
        np.save(tmp_path / f"{number}.npy", values)
        assert np.array_equal(as_samples(read_array(str(tmp_path / f"{number}.npy")), "p"), P)
    np.save(tmp_path / "p.npy", P + 1j)
    done = CliRunner().invoke(cli, ["ratio", str(tmp_path / "p.npy"), str(tmp_path / "0.npy")])
    assert isinstance(done.exception, DataError)
    assert "p.npy has complex numbers" in str(done.exception)


def test_bytes_and_fractions_from_0_to_1_are_not_compared():
    bytes_ = RNG.integers(0, 256, (500, 2), dtype=np.uint8)
    for p, q in ((bytes_, bytes_ / 255), (bytes_ / 255, bytes_)):
        with pytest.raises(DataError, match="bytes and the other numbers from 0 to 1, but bytes are compared as"):
            as_pair(p, q)
    _, _, are_pixels = as_pair(bytes_, bytes_ / 127.5 - 1)
    assert are_pixels
