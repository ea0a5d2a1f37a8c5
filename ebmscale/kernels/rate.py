"""FLOPs counted, and the matrix rate of a machine: what its best product of matrices reaches."""

import functools
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices that a device multiplies at its best rate."""
REPEATS = 10


def matrix_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", side: int | None = None, repeats: int = REPEATS
) -> float:
    """FLOPs a second of the faster of a matrix product and a 3x3 convolution.

    Both are measured because torch may hand them to different libraries: on some CPUs one library's fp32 products take
    twice as long as another's convolutions. The best of several repeats; on a CPU in processor time, which other
    processes do not use up.

    Args:
        dtype: of the numbers.
        device: where.
        side: of the square matrices (default: the device's); the convolution has a quarter of it as channels, on a
            square of 32.
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
    """How many times faster than fp32 a device multiplies bf16; far below 1 on a CPU that emulates it."""
    side = SIDES[device.type] // 4
    bf16, fp32 = (matrix_rate(dtype, device, side, repeats=3) for dtype in (torch.bfloat16, torch.float32))
    return bf16 / fp32


def clock_s(device: torch.device) -> float:
    """Seconds on which work is timed: of a CPU's threads, each; of the wall where a GPU works, once it has done so."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions inside the mode, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` does so too, but it hooks modules and then refuses `autograd.grad`, which
    chains are made of. Products with padding count, whether a kernel makes them or not.

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
    """Of oneDNN's operators, which torch's table leaves out."""

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
