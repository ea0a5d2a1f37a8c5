"""The cost of an Adam update on a CPU: torch's three forms, and DeepSpeed's own, which is compiled at first use.

    DS_ACCELERATOR=cpu python tools/bench/adam.py [--deepspeed]

LEBM's SVHN generator (3.4 M parameters), fp32, one thread. The repeats alternate between the forms; the table shows the
least processor time in milliseconds.
"""

import argparse
import time

import torch

from ebmscale.networks import build_generator
from ebmscale.seeds import torch_generator

RATE, BETAS, REPEATS = 1e-4, (0.5, 0.999), 8


def make(name: str) -> torch.optim.Optimizer:
    """An optimiser of a new generator, with gradients."""
    generator = build_generator(100, (3, 32, 32), 64, "svhn", generator=torch_generator(0, "generator"))
    drawn, parameters = torch_generator(0, "gradient"), list(generator.parameters())
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=drawn)
    if name == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: PLC0415 (asked for by name)

        made: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, lr=RATE, betas=BETAS, adamw_mode=False)
        return made
    ways = {"one by one": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    return torch.optim.Adam(parameters, RATE, BETAS, **ways[name])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--deepspeed", action="store_true", help="measure DeepSpeed's CPU Adam too (compiling takes minutes)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ["one by one", "foreach", "fused", *(["deepspeed"] if arguments.deepspeed else [])]
    optimizers = {name: make(name) for name in names}
    least = dict.fromkeys(names, float("inf"))
    for repeat in range(REPEATS + 1):
        for name, optimizer in optimizers.items():
            begin = time.process_time()
            optimizer.step()
            if repeat:  # the first one makes the state
                least[name] = min(least[name], time.process_time() - begin)
    for name, taken in least.items():
        print(f"{name:12} {taken * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
