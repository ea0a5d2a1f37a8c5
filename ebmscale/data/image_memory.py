"""Memory of images that is used again once nobody holds the images in it.

Fresh memory costs as much time as copying images into it, because the system gives it out page by page.
"""

import math
import weakref
from collections.abc import Sequence

import numpy as np

MOST_FREE = 16  # pieces that wait for their next use


class ImageMemory:
    """Gives out arrays. An array's memory is free again when the array and all its views, also torch's, are gone.

    One thread takes arrays. They may end in any thread.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: Sequence[int], dtype: np.dtype | str) -> np.ndarray:
        """An array of any content, in the smallest free memory that holds it. If none does, in fresh memory."""
        count = math.prod(shape)
        num_bytes = count * np.dtype(dtype).itemsize
        sizes = [memory.nbytes for memory in self._free]
        enough = [number for number, size in enumerate(sizes) if size >= num_bytes]
        if enough:
            memory = self._free.pop(min(enough, key=sizes.__getitem__))
        else:
            if sizes:
                self._free.pop(sizes.index(min(sizes)))  # so there is never more memory than was held at once
            memory = np.empty(num_bytes, np.uint8)
        array = np.frombuffer(memory.data, dtype, count)  # the base of all views, because its own is no array
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array.reshape(shape)

    def _give_back(self, memory: np.ndarray) -> None:
        if len(self._free) < MOST_FREE:
            self._free.append(memory)
