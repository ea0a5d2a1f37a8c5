"""The cost of a prior chain by its number of ratios K: with autograd, with the score written out, and fused on a GPU.

    python tools/bench/chain.py --threads 1 --chains 512 --steps 20
    python tools/bench/chain.py --device cuda --chains 1024 --steps 60

The rows alternate within a repeat, so that other load on the machine affects all rows. Times are the least of the
repeats (of processor time on a CPU). `of one network` is the cost of one more ratio, (t_K - t_1) / (K - 1), divided by
the cost of one network, t_1 - t_0.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ebmscale.density.langevin import LangevinSettings, Target, run_chain, start
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels.closed_form import closed_form_target
from ebmscale.kernels.rate import clock_s
from ebmscale.networks import RatioNet
from ebmscale.seeds import torch_generator


def make_prior(num_stages: int, dim: int, device: torch.device) -> RatioSequence:
    """K ratios of the default shape with seeded weights."""
    network = RatioNet(dim).to(device)
    prior = RatioSequence(StandardNormal(dim), network)
    for stage in range(num_stages):
        generator = torch_generator(0, "bench", stage)
        drawn = {n: 0.05 * torch.randn(w.shape, generator=generator) for n, w in network.state_dict().items()}
        prior = prior.append({name: weight.to(device) for name, weight in drawn.items()})
    return prior


def forms(
    prior: RatioSequence, z: Tensor, noise: Tensor, settings: LangevinSettings
) -> dict[str, Callable[[], object]]:
    """The forms of the chain that this device supports."""

    def by(target: Target) -> Callable[[], object]:
        return lambda: run_chain(target, start(target, z), noise, settings, evaluate_end=False)

    known: dict[str, Callable[[], object]] = {"autograd": by(prior.evaluate)}
    for name, dtype in {"written out": torch.float32, "written out, bf16": torch.bfloat16}.items():
        written = closed_form_target(prior, dtype)
        if written is not None:
            known[name] = by(written)
    if z.device.type == "cuda" and prior.num_stages:
        from ebmscale.kernels import fused_chain  # noqa: PLC0415

        known["fused"] = lambda: fused_chain.run(prior, z, noise, settings, settings.num_steps)
        known["fused, own noise"] = lambda: fused_chain.run(prior, z, 0, settings, settings.num_steps)
    return known


def measure(
    device: torch.device, num_chains: int, dim: int, num_steps: int, stages: Sequence[int], repeats: int
) -> dict[tuple[int, str], float]:
    """The least seconds of a chain by its number of ratios (0 first) and its form."""
    settings = LangevinSettings(num_steps, 0.2)
    z = torch.randn(num_chains, dim, generator=torch_generator(0, "z")).to(device)
    noise = torch.randn(num_chains, num_steps, dim, generator=torch_generator(0, "noise")).to(device)
    known = {number: forms(make_prior(number, dim, device), z, noise, settings) for number in (0, *stages)}
    least: dict[tuple[int, str], float] = {}
    for repeat in range(repeats + 1):
        for number, actions in known.items():
            for name, action in actions.items():
                begin = clock_s(device)
                action()
                taken = clock_s(device) - begin
                if repeat:  # the first one compiles and warms up
                    least[number, name] = min(taken, least.get((number, name), float("inf")))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chains", type=int, default=512)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--stages", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stages = [int(number) for number in arguments.stages.split(",")]
    device = torch.device(arguments.device)
    least = measure(device, arguments.chains, arguments.dim, arguments.steps, stages, arguments.repeats)
    print(f"{arguments.chains} chains of {arguments.dim}, {arguments.steps} steps, {arguments.device}; ms")
    print(f"{'K':>3} {'form':18} {'ms':>9} {'of autograd':>12} {'of K = 1':>9} {'of one network':>15}")
    none = least[0, "autograd"]
    for (number, name), taken in least.items():
        if not number:
            continue
        one = least.get((1, name), taken)
        slope = f"{(taken - one) / (number - 1) / (one - none):15.2f}" if number > 1 and one > none else f"{'':15}"
        print(
            f"{number:3} {name:18} {taken * 1e3:9.2f} {taken / least[number, 'autograd']:12.2f} "
            f"{taken / one:9.2f} {slope}"
        )


if __name__ == "__main__":
    main()
