"""The cost of a step of the posterior chain on a GPU: step by step or as a CUDA graph, generator plain or compiled.

    python tools/bench/posterior.py --width 256 --batch 512
    python tools/bench/posterior.py --width 128 --batch 128
    python tools/bench/posterior.py --form svhn --width 64 --batch 100 --dim 100

Images and weights are random; the prior is p_0 with two ratios of 200-200; the precision is bf16. The repeats alternate
between the rows, and the table shows the least milliseconds a step. The rate counts torch's FLOPs of the plain
generator's forward and backward pass, and is compared with the card's bf16 matrix rate, measured in the same process.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[2])

from ebmscale.density.langevin import LangevinSettings, Target
from ebmscale.kernels.chain_graph import ChainGraphs, Chains, Ends, Subject, run_chains
from ebmscale.kernels.forms import FormName, form_of
from ebmscale.kernels.rate import FlopCount, clock_s, matrix_rate
from ebmscale.model.posterior import posterior_target
from ebmscale.networks import build, image_generator
from ebmscale.seeds import torch_generator
from tools.bench.chain import make_prior

SIGMA, SHAPE = 0.3, (3, 32, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="cifar10")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device, but this benchmark needs one")
    device, batch, dim = torch.device("cuda"), arguments.batch, arguments.dim
    source = torch_generator(0, "generator")
    generator = build(lambda: image_generator(dim, SHAPE, arguments.width, arguments.form), source)
    generator.requires_grad_(False)
    generator.to(device, torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prior, settings = make_prior(2, dim, device), LangevinSettings(arguments.steps, 0.1)
    drawn = torch_generator(0, "chains")
    shapes = ((batch, dim), (batch, *SHAPE), (batch, arguments.steps, dim))
    chains = Chains(*(torch.randn(shape, generator=drawn).to(device) for shape in shapes))

    def rows(form: FormName) -> dict[str, Callable[[], Ends]]:
        network, graphs = form_of(form, generator), ChainGraphs()

        def target_of(x: Tensor) -> Target:
            return posterior_target(prior, network, x, SIGMA)

        def graph() -> Ends:
            return graphs.run(Subject(network, prior), target_of, chains, settings, lambda: None)

        return {
            f"{form}, step by step": lambda: run_chains(target_of(chains.x), chains, settings, lambda: None),
            f"{form}, graph": graph,
        }

    actions = rows("plain") | rows("compiled")
    ends = {name: [action() for _ in range(2)][-1].z for name, action in actions.items()}  # compiles and captures
    with FlopCount() as counter:
        next(iter(actions.values()))()
    least = dict.fromkeys(actions, float("inf"))
    for _ in range(arguments.repeats):
        for name, action in actions.items():
            begin = clock_s(device)
            action()
            least[name] = min(least[name], (clock_s(device) - begin) / arguments.steps)
    rate = matrix_rate(torch.bfloat16, device)
    flops, moved = counter.total / arguments.steps, (ends["plain, step by step"] - chains.z).norm()
    print(f"{torch.cuda.get_device_name()}, bf16 matrix rate {rate / 1e12:.0f} TFLOP/s")
    print(f"{arguments.form}, width {arguments.width}, latent {dim}, batch {batch}, {flops / 1e12:.3f} TFLOP a step")
    print(f"{'chain':24} {'ms a step':>10} {'TFLOP/s':>8} {'of rate':>8} {'off by':>8}")
    for name, taken in least.items():
        error = float((ends[name] - ends["plain, step by step"]).norm() / moved)
        print(f"{name:24} {taken * 1e3:10.3f} {flops / taken / 1e12:8.0f} {flops / taken / rate:8.1%} {error:8.1e}")


if __name__ == "__main__":
    main()
