"""Bytes of weights, gradients and optimiser in a worker, by ZeRO stage, with one and with two real workers.

    python tools/bench/zero.py [--width 64]

It trains LEBM's SVHN generator, whose size --width sets, by DeepSpeed on random images. It counts all storages of
tensors in the process, without those from before the engine: between two updates, and when Adam is called, when
gradients exist too. In ZeRO 3 the training state is all of them. In the other stages it is all but the module's own
weights, which these stages do not shard.
"""

import argparse
import gc
import json
import os
import subprocess
import sys

import torch
from torch import Tensor

from ebmscale.networks import Generator, count_parameters
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World

SHAPE, LATENT, ROWS, UPDATES = (3, 32, 32), 100, 4, 3


def storages() -> dict[int, int]:
    """Bytes of every storage that a tensor of this process has, by address."""
    tensors = [value for value in gc.get_objects() if issubclass(type(value), Tensor) and value.device.type == "cpu"]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def held_bytes(stage: int, precision: str, width: int, world: World) -> dict[str, float]:
    """Bytes a parameter on this worker: between updates, and as Adam is called."""
    torch.manual_seed(world.rank)
    z, x = torch.randn(ROWS, LATENT), torch.randn(ROWS, *SHAPE)
    gc.collect()
    before = storages()
    module = Generator(LATENT, SHAPE, width, "svhn")
    num_elements = count_parameters(module)
    settings = EngineSettings("deepspeed", stage, precision)  # type: ignore[arg-type]
    engine = make_engine(module, OptimizerSettings(1e-4, (0.5, 0.999)), settings, world)
    seen = list[int]()

    def held() -> int:
        return sum(size for address, size in storages().items() if address not in before)

    engine._adam.register_step_pre_hook(lambda *_: seen.append(held()))
    for _ in range(UPDATES):
        engine.backward((engine(z) - x).square().mean())
        engine.step(1e-4)
    gc.collect()
    whole = 0 if stage == 3 else sum(parameter.nbytes for parameter in module.parameters())
    found = {"between": held() - whole, "adam": max(seen) - whole}
    return {name: size / num_elements for name, size in found.items()}


def main() -> None:
    """Measures with one and with two workers, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--worker", choices=["fp32", "bf16"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        world = World.from_environment("cpu")
        found = {stage: held_bytes(stage, given.worker, given.width, world) for stage in range(4)}
        if world.is_first:
            print(json.dumps(found))
        return
    print(
        "| ZeRO | precision | between updates, B a parameter, 1 worker | 2 | ratio | as Adam is called, 1 | 2 | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        workers = [run_workers(size, precision, given.width) for size in (1, 2)]
        for stage in map(str, range(4)):
            cells = [f"{stage} | {precision}"]
            for moment in ("between", "adam"):
                one, two = (held[stage][moment] for held in workers)
                cells.append(f"{one:.2f} | {two:.2f} | {two / one:.2f}")
            print(f"| {' | '.join(cells)} |")


def run_workers(size: int, precision: str, width: int) -> dict[str, dict[str, float]]:
    """Runs `size` workers; returns the results of rank 0, by stage."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    done = subprocess.run(
        [sys.executable, *several, __file__, "--worker", precision, "--width", str(width)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
