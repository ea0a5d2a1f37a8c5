"""Counts FLOPs, and measures the matrix rate of a machine: the FLOPs a second of its fastest matrix product."""

import functools
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that are multiplied, by kind of device."""
REPEATS = 10


def matrix_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", side: int | None = None, repeats: int = REPEATS
) -> float:
    """FLOPs a second of a matrix product or of a 3x3 convolution, whichever is faster.

    Both are measured because torch may compute them with different libraries. On some CPUs the fp32 products of one
    library take twice as long as the convolutions of another. The best of several repeats counts. On a CPU the time is
    processor time, which excludes other processes.

    Args:
        dtype: of the numbers.
        device: where to measure.
        side: of the square matrices (default: `SIDES`). The convolution has side / 4 channels, on a square of 32.
        repeats: of each.
    """
    place = torch.device(device)
    side = side or SIDES[place.type]
    matrix = torch.randn(side, side, device=place).to(dtype)
    channels, size = side // 4, 34
    image = torch.randn(1, channels, size, size, device=place).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=place).to(dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    actions = {
        2 * side**3: lambda: matrix @ matrix,
        2 * channels**2 * 9 * (size - 2) ** 2: lambda: torch.conv2d(image, kernel),
    }
    best = 0.0
    with torch.no_grad():
        for _ in range(repeats):
            for flops, action in actions.items():
                begin = clock_s(place)
                action()
                best = max(best, flops / (clock_s(place) - begin))
    return best


@functools.lru_cache
def bf16_gain(device: torch.device) -> float:
    """The matrix rate of bf16 divided by that of fp32. It is far below 1 on a CPU that emulates bf16."""
    side = SIDES[device.type] // 4
    bf16, fp32 = (matrix_rate(dtype, device, side, repeats=3) for dtype in (torch.bfloat16, torch.float32))
    return bf16 / fp32


def clock_s(device: torch.device) -> float:
    """The clock, in seconds, that times work on a device.

    On a CPU it is processor time divided by the number of threads. On a GPU it is wall time, after waiting for the GPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions inside the mode, with the formulas of torch.

    `torch.utils.flop_counter.FlopCounterMode` hooks modules and so does not support `autograd.grad`, which chains use.
    Products with padding are counted, whether a kernel computes them or not.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _formulas().get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@functools.lru_cache
def _formulas() -> dict[Any, Any]:
    """FLOP formulas of oneDNN's operators, which the table of torch lacks."""

    def transposed(x: Any, weight: Any, *_: Any, out_val: Any, **__: Any) -> int:
        return conv_flop_count(x.shape, weight.shape, out_val.shape, transposed=True)

    def straight(x: Any, weight: Any, *_: Any, out_val: Any, **__: Any) -> int:
        return conv_flop_count(x.shape, weight.shape, out_val.shape)

    if not hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise"):
        return {}
    return {
        torch.ops.mkldnn._convolution_pointwise: straight,
        torch.ops.mkldnn._convolution_transpose_pointwise: transposed,
    }
