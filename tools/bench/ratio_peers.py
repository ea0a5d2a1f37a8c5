"""`fit_ratio` with nothing but two sets of samples, beside a plain classifier, where KL(q || p) is known.

    python tools/bench/ratio_peers.py --cases gaussians-20,moons --seeds 1 --out ratio_peers.jsonl

Cases: Gaussians of 20 dimensions 20 and 5 nats apart, half of it by scale; pairs with a mutual information of 10 nats
against shuffled ones; 25 Gaussians of unequal weights against one Gaussian; Gamma(3) against the exponential; two
moons against a Gaussian. The classifier is scikit-learn's multilayer perceptron of the same width, trained on the same
samples but the held-out ones; its estimate is the mean of its log odds at held-out samples of q. `densratio`, where it
is installed, gives the mean of the logarithm of its ratio. Times are processor seconds on one thread.

Shapes: N samples, Z coordinates.
"""

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from ebmscale.ratios import fit_ratio
from ebmscale.seeds import torch_generator

NUM_SAMPLES = 20_000
CORRELATION = 0.7951
MOON_SD, GAUSSIAN_SD = 0.1, 0.1


class Case(NamedTuple):
    """Samples of p and q (N, Z), and KL(q || p) in nats."""

    p: Tensor
    q: Tensor
    true: float


def gaussians(nats: float, generator: torch.Generator, dim: int = 20) -> Case:
    """N(0, I) and N(shift, scale^2 I); half of the divergence by scale, the rest by a shift along the diagonal."""
    low, high = 0.01, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        wide = 0.5 * dim * (middle**2 - 1 - 2 * math.log(middle)) > nats / 2
        low, high = (middle, high) if wide else (low, middle)
    shift = math.sqrt(nats / dim)
    p, q = (torch.randn(NUM_SAMPLES, dim, generator=generator) for _ in range(2))
    return Case(p, shift + low * q, 0.5 * dim * (low**2 - 1 - 2 * math.log(low) + shift**2))


def pairs(generator: torch.Generator, dim: int = 20) -> Case:
    """(x, y) with that correlation in every coordinate, and the same with y shuffled."""
    x, noise = (torch.randn(NUM_SAMPLES, dim, generator=generator) for _ in range(2))
    y = CORRELATION * x + math.sqrt(1 - CORRELATION**2) * noise
    shuffled = y[torch.randperm(NUM_SAMPLES, generator=generator)]
    true = -0.5 * dim * math.log(1 - CORRELATION**2)
    return Case(torch.cat([x, shuffled], 1), torch.cat([x, y], 1), true)


def mixture(centres: Tensor, weights: Tensor, sd: float, wide: float, generator: torch.Generator) -> Case:
    """Gaussians around centres (M, 2), and N(0, wide^2 I); the divergence by a million draws of q."""

    def drawn(num: int) -> Tensor:
        places = torch.multinomial(weights, num, replacement=True, generator=generator)
        return centres[places] + sd * torch.randn(num, 2, generator=generator)

    total = 0.0
    for part in drawn(1_000_000 if len(centres) < 100 else 100_000).double().split(20_000):
        distance = torch.cdist(part, centres.double()).square()
        log_q = (weights.double().log() - 0.5 * distance / sd**2).logsumexp(1) - 2 * math.log(sd)
        log_p = -0.5 * part.square().sum(1) / wide**2 - 2 * math.log(wide)
        total += float((log_q - log_p).sum())
    count = 1_000_000 if len(centres) < 100 else 100_000
    return Case(wide * torch.randn(NUM_SAMPLES, 2, generator=generator), drawn(NUM_SAMPLES), total / count)


def lattice(generator: torch.Generator) -> Case:
    """25 Gaussians on a grid, the last of which weighs 25 times as much as the first."""
    axis = torch.arange(5) - 2.0
    weights = torch.arange(1, 26) / 325
    return mixture(torch.cartesian_prod(axis, axis), weights, GAUSSIAN_SD, 1.5, generator)


def moons(generator: torch.Generator) -> Case:
    """Two half circles, as 400 narrow Gaussians."""
    turn = torch.linspace(0, math.pi, 200)
    upper = torch.stack([turn.cos() - 0.5, turn.sin() - 0.25], 1)
    return mixture(torch.cat([upper, -upper]), torch.full((400,), 1 / 400), MOON_SD, 1.0, generator)


def gamma(generator: torch.Generator) -> Case:
    """Gamma(3) against Exponential(1): the logarithm of x^2 / 2."""
    p, parts = (-torch.rand(NUM_SAMPLES, num, generator=generator).clamp(min=1e-12).log() for num in (1, 3))
    return Case(p, parts.sum(1, keepdim=True), 2 * (1.5 - 0.5772156649) - math.log(2))


CASES: dict[str, Callable[[torch.Generator], Case]] = {
    "gaussians-20": lambda generator: gaussians(20.0, generator),
    "gaussians-5": lambda generator: gaussians(5.0, generator),
    "mutual-information": pairs,
    "25-gaussians": lattice,
    "gamma": gamma,
    "moons": moons,
}


def classifier(case: Case, seed: int) -> dict[str, float]:
    """Scikit-learn's multilayer perceptron."""
    began = time.process_time()
    cut = round(0.9 * NUM_SAMPLES)
    x = torch.cat([case.q[:cut], case.p[:cut]]).numpy()
    y = np.repeat([1, 0], cut)
    network = MLPClassifier((128, 128), early_stopping=True, random_state=seed, max_iter=60)
    network.fit(x, y)
    odds = network.predict_log_proba(case.q[cut:].numpy()).clip(-700)
    return {"estimate": float((odds[:, 1] - odds[:, 0]).mean()), "cpu_s": time.process_time() - began}


def ours(case: Case, seed: int) -> dict[str, Any]:
    """`fit_ratio` as it comes."""
    began = time.process_time()
    fitted = fit_ratio(case.p, case.q, seed=seed)
    low, high = fitted.interval
    return {
        "estimate": fitted.kl, "low": low, "high": high, "covers": low <= case.true <= high,
        "warning": fitted.warning, "stages": fitted.num_stages, "cpu_s": time.process_time() - began,
        "base": "samples" if fitted.reference is None else "gaussian",
    }  # fmt: skip


def direct(case: Case) -> dict[str, float] | None:
    """The package densratio, where it is installed."""
    try:
        package = importlib.import_module("densratio")
    except ImportError:
        return None
    began = time.process_time()
    found = package.densratio(case.q.numpy(), case.p.numpy(), verbose=False)
    ratio = np.maximum(found.compute_density_ratio(case.q.numpy()), 1e-300)
    return {"estimate": float(np.log(ratio).mean()), "cpu_s": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="with commas")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases.split(","):
        for seed in range(arguments.seeds):
            case = CASES[name](torch_generator(seed, "peers"))
            line = {"case": name, "seed": seed, "true": case.true, "fit_ratio": ours(case, seed)}
            line |= {"classifier": classifier(case, seed), "densratio": direct(case)}
            print(json.dumps(line), flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
