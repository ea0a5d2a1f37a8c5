"""Memory of images that is used again once nobody holds the images."""

import numpy as np
import torch

from ebmscale.data import image_memory
from ebmscale.data.image_memory import ImageMemory

SHAPE = (6, 3, 4, 4)


def place(array: np.ndarray) -> int:
    return array.ctypes.data


def test_memory_is_free_only_when_every_view_is_gone():
    memory = ImageMemory()
    first = memory.take(SHAPE, "u1")
    at = place(first)
    views = [first[2:4], torch.from_numpy(first[1:3]), first.reshape(-1)[::2], torch.from_numpy(first)[0]]
    del first
    while views:
        assert place(memory.take(SHAPE, "u1")) != at
        views.pop()
    taken = [memory.take(SHAPE, "u1") for _ in range(8)]
    assert at in map(place, taken)
    assert len(set(map(place, taken))) == len(taken)


def test_the_smallest_memory_that_suffices_is_taken():
    memory = ImageMemory()
    arrays = {size: memory.take((size, 4), "f4") for size in (100, 10, 1000)}
    at = {size: place(array) for size, array in arrays.items()}
    arrays.clear()
    assert place(memory.take((50, 4), "f4")) == at[100]
    held = memory.take((99, 4), "f4")
    assert place(held) == at[100]
    assert place(memory.take((99, 4), "f4")) == at[1000]


def test_there_is_no_more_memory_than_was_held_at_once(monkeypatch):
    monkeypatch.setattr(image_memory, "MOST_FREE", 3)
    memory = ImageMemory()
    for size in range(1, 50):
        memory.take((size,), "u1")
    assert len(memory._free) == 1
    many = [memory.take((60,), "u1") for _ in range(10)]
    many.clear()
    assert len(memory._free) == 3


def test_an_array_may_be_empty():
    assert ImageMemory().take((0, 3, 4, 4), "f4").shape == (0, 3, 4, 4)
