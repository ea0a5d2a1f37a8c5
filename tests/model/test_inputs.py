"""What people give to a model is brought to one form, or refused with what to change."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from ebmscale.errors import ConfigError
from ebmscale.model.inputs import check_count, images_of, latents_of

SHAPE = (3, 8, 8)
GREY = np.full((2, *SHAPE), 128, dtype=np.uint8)


@pytest.mark.parametrize(
    "given",
    [
        GREY,
        torch.tensor(GREY),
        GREY.astype(np.int64),
        GREY / 127.5 - 1,
        torch.tensor(GREY / 127.5 - 1).half(),
        list(GREY),
    ],
    ids=["uint8 array", "uint8 tensor", "int64", "float64", "float16", "list"],
)
def test_images_of_every_kind_become_the_same_pixels(given: Any) -> None:
    if isinstance(given, list):
        given = np.stack(given).tolist()
    found = images_of(given, SHAPE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2, *SHAPE), 128 / 127.5 - 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GREY.astype(float), "lie from 128 to 128; of pixels from 0 to 255 give x.astype('uint8')"),
        (GREY / 127.5 - 7, "as floats must lie in [-1, 1]"),
        (GREY.astype(int) + 200, "must lie from 0 to 255, and these lie from 328"),
        (GREY[0], "of one image write x[None]"),
        (GREY.transpose(0, 2, 3, 1), "move the channels with transpose(0, 3, 1, 2)"),
        (GREY[:, :1], "shape (B, 3, 8, 8), and these have the shape (2, 1, 8, 8)."),
        (GREY[:0], "There are no images"),
        (GREY * np.nan, "not finite numbers"),
        (GREY > 3, "these are bool"),
        ("runs/digits", "must be a tensor or an array of numbers, not str"),
        (None, "not NoneType"),
    ],
)
def test_other_images_are_refused_with_what_to_do(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        images_of(given, SHAPE)


def test_latents_are_checked_too() -> None:
    assert latents_of(np.zeros((2, 4)), 4).dtype == torch.float32
    for given, said in [
        (np.zeros(4), "of one latent write z[None]"),
        (np.zeros((2, 5)), "shape (N, 4), and these have the shape (2, 5)"),
        (np.full((2, 4), np.inf), "not finite"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(said)):
            latents_of(given, 4)


@pytest.mark.parametrize(("num", "seed"), [(0, 0), (-3, 0), (2.5, 0), (True, 0), ("4", 0), (4, -1), (4, None)])
def test_counts_and_seeds_are_whole_numbers(num: Any, seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be a whole number from [01] on, and it is"):
        check_count(num, seed)
    check_count(np.int64(3), 0)
