"""Density ratios and normalisers against what is known in closed form.

    python tools/bench/density.py --part peak,gaussians,mi --seeds 5 --out density.jsonl
    python tools/bench/density.py --part toys,mi-mlp --seeds 5 --out density.jsonl
    python tools/bench/density.py --table --out density.jsonl

Every fit appends one line to the file, and one that is there already is not repeated. The parts:

- toys: KL(q || p_K) on a grid for four densities in the plane, with log Z by sequential Monte Carlo and by the grid;
  a perceptron that sees 64 waves, whose settings were chosen with seed 10;
- gaussians: KL between Gaussians at 5, 20 and 50 nats in 2, 20 and 100 dimensions, beside one NCE ratio of the same
  network, of as many updates and at least 3,000;
- mi: mutual information of Gaussian pairs with correlation 0.7951;
- peak: N(0, 1) to N(0, s^2) for s = 1e-3 and 1e-6, beside one NCE ratio.

The last three have a quadratic head alone. With "-zero" added to a part's name it starts at zero in every stage, and
not at the ratio of two Gaussians; gaussians-mlp and mi-mlp have a perceptron instead. The single ratio starts at zero.

Shapes: N samples, Z coordinates, G grid points.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).resolve().parents[2])

from ebmscale.density.losses import nce
from ebmscale.density.prior import StandardNormal
from ebmscale.model.sampler import total
from ebmscale.networks import Standardised, initialise
from ebmscale.ratios import FitSettings, FittedRatio, fit_ratio
from ebmscale.ratios.network import build_network
from ebmscale.ratios.uses import mutual_information
from ebmscale.seeds import torch_generator
from tools.bench.toys import Toy, toys

NETWORKS: dict[str, dict[str, Any]] = {
    "quadratic": {"quadratic": True, "hidden": ()},
    "zero": {"quadratic": True, "hidden": (), "start": "zero"},
    "mlp": {"quadratic": False},
}
CORRELATION = 0.7951
NUM_SAMPLES = 100_000
SINGLE_UPDATES = 3000
HALF_WIDTH, GRID_POINTS = 5.0, 1001


def on_grid(fitted: FittedRatio, toy: Toy) -> tuple[float, float]:
    """KL(q || p_K) with p_K normalised by the fit's own log Z, and log Z by the grid; in float64.

    The points are the centres of cells of side 0.01, so that no edge of the checkerboard goes through one.
    """
    side = 2 * HALF_WIDTH / GRID_POINTS
    axis = (torch.arange(GRID_POINTS, dtype=torch.float64) + 0.5) * side - HALF_WIDTH
    kl, log_z = 0.0, []
    for part in torch.cartesian_prod(axis, axis).split(100_000):
        z = part.float()
        log_p = (total(fitted.sequence, z) + fitted.sequence.base.log_density(z)).double()
        log_q = toy.log_density(part)
        log_z.append(log_p.logsumexp(0))
        mass = log_q.exp() * side**2
        kl += float(torch.where(mass > 0, mass * (log_q - log_p + fitted.normaliser.log_z), 0.0).sum())
    return kl, float(torch.stack(log_z).logsumexp(0)) + 2 * math.log(side)


def single_nce(q: Tensor, dim: int, updates: int, settings: FitSettings, seed: int) -> Callable[[Tensor], Tensor]:
    """One NCE ratio of q to N(0, I): the same network and rate, fresh samples of the base; it starts at zero."""
    generator = torch_generator(seed, "single-nce")
    network = Standardised(build_network((dim,), settings), dim)
    initialise(network, generator)
    both = torch.cat([q[:4096], torch.randn(4096, dim, generator=generator)])
    network.set_spread(both.mean(0), both.std(0))
    optimizer = torch.optim.Adam(network.parameters(), settings.rate)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = settings.rate * 0.5 * (1 + math.cos(math.pi * update / updates))
        z_q = q[torch.randint(len(q), (settings.batch_size,), generator=generator)]
        z_p = torch.randn(settings.batch_size, dim, generator=generator)
        f_q, f_p = network(torch.cat([z_q, z_p])).split(settings.batch_size)
        optimizer.zero_grad(set_to_none=True)
        nce(f_q, f_p).backward()
        optimizer.step()
    return no_grad(network)


def no_grad(network: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def evaluate(z: Tensor) -> Tensor:
        return network(z)

    return evaluate


def summary(fitted: FittedRatio) -> dict[str, Any]:
    return {
        "estimate": fitted.kl,
        "error": fitted.kl_error,
        "log_z": fitted.normaliser.log_z,
        "log_z_error": fitted.normaliser.error,
        "log_z_bridge": fitted.normaliser.bridge,
        "stages": sum(row.gain > 0 for row in fitted.stages),
        "updates": sum(row.updates for row in fitted.stages),
    }


def toy_case(name: str, seed: int) -> dict[str, Any]:
    toy = toys()[name]
    q = toy.sample(NUM_SAMPLES, torch_generator(seed, "toy"))
    settings = FitSettings(
        waves=64, quadratic=False, max_stages=4, max_updates=4000, num_particles=4096, groups=48, group_size=1024,
        ess=0.85,
    )  # fmt: skip
    fitted = fit_ratio(StandardNormal(2), q, settings=settings, seed=seed)
    kl, log_z = on_grid(fitted, toy)
    return summary(fitted) | {"kl": kl, "grid_log_z": log_z}


def gaussian_case(dim: int, kl: float, network: str, seed: int) -> dict[str, Any]:
    """Half of the divergence by scale, down to 0.5, the rest by a shift along the diagonal."""
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 0.5 * dim * scale_kl(middle) > kl / 2 else (low, middle)
    scale = low
    shift = math.sqrt(2 * kl / dim - scale_kl(scale))
    q = shift + scale * torch.randn(NUM_SAMPLES, dim, generator=torch_generator(seed, "gaussians", dim))
    settings = FitSettings(num_particles=4096, **NETWORKS[network])
    fitted = fit_ratio(StandardNormal(dim), q, settings=settings, seed=seed)
    result = summary(fitted) | {"true": kl, "scale": scale, "shift": shift}
    updates = max(result["updates"], SINGLE_UPDATES)
    single = single_nce(q[: NUM_SAMPLES // 2], dim, updates, settings, seed)
    return result | {"single": float(single(q[NUM_SAMPLES // 2 :]).double().mean())}


def scale_kl(scale: float) -> float:
    """Twice KL(N(0, scale^2) || N(0, 1))."""
    return scale**2 - 1 - 2 * math.log(scale)


def mi_case(dim: int, network: str, seed: int) -> dict[str, Any]:
    generator = torch_generator(seed, "mutual-information", dim)
    num = 2 * NUM_SAMPLES if network == "mlp" else NUM_SAMPLES
    x = torch.randn(num, dim // 2, generator=generator)
    noise = torch.randn(num, dim // 2, generator=generator)
    y = CORRELATION * x + math.sqrt(1 - CORRELATION**2) * noise
    settings = FitSettings(**NETWORKS[network])
    found = mutual_information(x, y, seed=seed, settings=settings)
    marginals = sum(side.kl for side in found.marginals)
    return summary(found.joint) | {
        "estimate": found.nats,
        "error": found.error,
        "marginals": marginals,
        "true": -0.25 * dim * math.log(1 - CORRELATION**2),
    }


def peak_case(sd: float, network: str, seed: int) -> dict[str, Any]:
    q = sd * torch.randn(NUM_SAMPLES, 1, generator=torch_generator(seed, "peak"))
    settings = FitSettings(max_stages=12, num_particles=8192, groups=16, ess=0.7, **NETWORKS[network])
    fitted = fit_ratio(StandardNormal(1), q, settings=settings, seed=seed)
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None] * sd
    true = (-math.log(sd) - 0.5 * (x / sd) ** 2 + 0.5 * x**2).squeeze(1)
    updates = max(sum(row.updates for row in fitted.stages), SINGLE_UPDATES)
    single = single_nce(q, 1, updates, settings, seed)(x.float())
    spread = true.max() - true.min()
    worst = {
        name: float((found.double() - true).abs().max() / spread)
        for name, found in {"worst": fitted.log_ratio(x), "single": single}.items()
    }
    return summary(fitted) | worst | {"true": -math.log(sd) - 0.5 + 0.5 * sd**2}


def cases(parts: list[str], num_seeds: int) -> Iterator[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """The name, the seed and the work of every fit."""
    for seed in range(num_seeds):
        for part in parts:
            kind, _, network = part.partition("-")
            network = network or "quadratic"
            if part == "toys":
                for name in toys():
                    yield f"toy {name}", seed, lambda name=name, seed=seed: toy_case(name, seed)  # type: ignore[misc]
            elif kind == "gaussians":
                for dim in (2, 20, 100):
                    for kl in (5, 20, 50):
                        name = f"gaussian {network} d={dim} kl={kl}"
                        yield name, seed, lambda a=(dim, kl, network, seed): gaussian_case(*a)  # type: ignore[misc]
            elif kind == "mi":
                for dim in (40, 80, 160, 320):
                    yield f"mi {network} d={dim}", seed, lambda a=(dim, network, seed): mi_case(*a)  # type: ignore[misc]
            elif kind == "peak":
                for sd in (1e-3, 1e-6):
                    yield f"peak {network} sd={sd:g}", seed, lambda a=(sd, network, seed): peak_case(*a)  # type: ignore[misc]
            else:
                raise SystemExit(f"there is no part {part}")


def table(lines: list[dict[str, Any]]) -> str:
    """Every case, mean +- sd over its seeds, in Markdown."""
    by_case: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_case[line["case"]].append(line)
    return "\n".join(_row(name, rows) for name, rows in by_case.items())


def _row(name: str, rows: list[dict[str, Any]]) -> str:
    def both(key: str, digits: int = 3) -> str:
        values = [row[key] for row in rows]
        return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")

    cells = [name, str(len(rows)), f"K {both('stages', 1)}"]
    if "kl" in rows[0]:
        gaps = [abs(row["log_z"] - row["grid_log_z"]) for row in rows]
        cells += [f"KL(q, p_K) {both('kl', 4)}", f"log Z off the grid's by {mean(gaps):.4f}, at most {max(gaps):.4f}"]
    elif "worst" in rows[0]:
        cells += [f"KL {both('estimate')} of {rows[0]['true']:.3f}"]
        cells += [f"worst error {100 * mean(row[key] for row in rows):.2f} % ({key})" for key in ("worst", "single")]
    else:
        off = [100 * (row["estimate"] / row["true"] - 1) for row in rows]
        squared = mean((row["estimate"] - row["true"]) ** 2 for row in rows)
        cells += [f"{both('estimate', 2)} of {rows[0]['true']:.2f}", f"off by {mean(off):+.2f} %"]
        cells += [f"largest {max(off, key=abs):+.2f} %", f"squared error {squared:.4f}"]
        cells += [f"single {both('single', 2)}"] if "single" in rows[0] else []
    return "| " + " | ".join([*cells, f"{mean(row['cpu_s'] for row in rows):.0f} CPU-s"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="peak,gaussians,mi,toys,mi-mlp", help="with commas")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("density.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = arguments.out.read_text() if arguments.out.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    if arguments.table:
        print(table(lines))
        return
    known = {(line["case"], line["seed"]) for line in lines}
    for name, seed, work in cases(arguments.part.split(","), arguments.seeds):
        if (name, seed) in known or arguments.only not in name:
            continue
        began = time.process_time()
        line = {"case": name, "seed": seed} | work() | {"cpu_s": time.process_time() - began}
        print(json.dumps(line), flush=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
