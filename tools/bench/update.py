"""One update at LEBM's SVHN setting: a plain PyTorch loop in fp32 and ours, on the same threads in one run.

    python tools/bench/update.py --threads 1 --repeats 5

The plain loop is that of Pang et al. 2020, in `lebm.LebmLoop`: posterior chains of 20 steps, prior chains of 60 steps,
an update of the generator, an update of the energy. Ours makes the same passes: the prior is p_0 with one frozen ratio
of the same network; 100 prior chains of 60 steps start from p_0; one ratio update has 100 + 100 latents. Both have the
same FLOPs by torch's formulas, and the benchmark stops if they differ by more than 1 %. The formulas count products
with padding, even if a kernel skips them. Updates alternate, so that other load affects both. Seconds are processor
time, the least and the median of the repeats.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parents[2])

from ebmscale.config import RunConfig, parse_config
from ebmscale.kernels.rate import FlopCount, matrix_rate
from ebmscale.seeds import torch_generator
from ebmscale.stop import StopSignal
from ebmscale.training.opening import open_run
from ebmscale.training.run import Run
from ebmscale.training.update import train_batch
from ebmscale.world import World
from tools.bench.lebm import LebmLoop, Setting

BATCH, DIM, WIDTH, SIGMA = 100, 100, 64, 0.3
POSTERIOR_STEPS, POSTERIOR_STEP, PRIOR_STEPS, PRIOR_STEP = 20, 0.1, 60, 0.4
NUM_IMAGES = 2000
SETTING = Setting(
    *((3, 32, 32), "svhn", DIM, WIDTH, SIGMA, (200, 200), POSTERIOR_STEPS, POSTERIOR_STEP, PRIOR_STEPS, PRIOR_STEP),
    generator_rate=1e-4,
    energy_rate=2e-5,
)

CONFIG = f"""
run: {{name: update, seed: 0}}
data: {{url: DATA/packed, format: npy, source: DATA/images.npy, validation_fraction: 0.05, num_streams: 50,
       shuffle_window: 16, verify: none}}
storage: {{url: DATA/runs}}
model:
  latent_dim: {DIM}
  generator: {{form: svhn, width: {WIDTH}}}
  sigma: {SIGMA}
  ratio: {{activation: leaky_relu}}
posterior: {{num_steps: {POSTERIOR_STEPS}, step_size: {POSTERIOR_STEP}}}
prior: {{kind: short_run, num_steps: {PRIOR_STEPS}, step_size: {PRIOR_STEP}, num_chains: {BATCH}}}
stages: {{updates_per_batch: 1, batch_size: {BATCH}, buffer_samples: {BATCH}, evidence_samples: 50}}
train: {{batch_size: {BATCH}, max_samples: 1000000, generator: {{rate: 1.0e-4}}, ratio: {{rate: 2.0e-5}}}}
engine: plain
device: cpu
"""


def open_ours(folder: Path, precision: str, kernel: str) -> Run:
    """Our run at the same setting, with one frozen ratio whose weights are not zero."""
    config: RunConfig = parse_config(
        CONFIG.replace("DATA", str(folder)), [f"precision={precision}", f"posterior.kernel={kernel}"]
    )
    run = open_run(config, World.alone(), StopSignal())
    weights = run.stages.engine.full_weights()
    generator = torch_generator(0, "frozen")
    frozen = {name: 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    run.stages.take_frozen([frozen])
    return run


def make_update(run: Run) -> Callable[[], None]:
    """Returns a function that makes one update."""
    batches = run.batches()

    def update() -> None:
        batch = next(batches)
        train_batch(run, batch)
        run.finish(batch)

    return update


def flops(action: Callable[[], None]) -> int:
    """FLOPs of matrix products and convolutions."""
    with FlopCount() as counter:
        action()
    return counter.total


def seconds(action: Callable[[], None]) -> float:
    """Processor seconds."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--kernels", default="plain,auto", help="kernels of the posterior chains (posterior.kernel)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=np.uint8)
        np.save(folder / "images.npy", images)
        x = torch.from_numpy(images[:BATCH]).float() / 127.5 - 1
        loop = LebmLoop(SETTING)
        runs: dict[tuple[str, str], Run] = {}
        for precision in arguments.precisions.split(","):
            for kernel in arguments.kernels.split(","):
                place = folder / f"{precision}-{kernel}"
                place.mkdir()
                np.save(place / "images.npy", images)
                runs[precision, kernel] = open_ours(place, precision, kernel)
        updates: dict[tuple[str, str], Callable[[], None]] = {("fp32", "LEBM"): lambda: loop.update(x)}
        updates |= {key: make_update(run) for key, run in runs.items()}
        counted = {key: flops(update) for key, update in updates.items()}  # warms them up too
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in updates}
        for _ in range(arguments.repeats):
            for key, update in updates.items():
                taken[key].append(seconds(update))
        rates = {"fp32": matrix_rate(torch.float32), "bf16": matrix_rate(torch.bfloat16)}
        for run in runs.values():
            run.close()
    _print(counted, taken, rates, arguments.threads, {key: run.sampling.form for key, run in runs.items()})


def _print(
    counted: dict[tuple[str, str], int],
    taken: dict[tuple[str, str], list[float]],
    rates: dict[str, float],
    threads: int,
    forms: dict[tuple[str, str], str],
) -> None:
    base = ("fp32", "LEBM")
    print("auto took: " + ", ".join(f"{key[0]} {form}" for key, form in forms.items() if key[1] == "auto"))
    print(f"matrix rate, {threads} thread(s): " + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates.items()))
    print(f"{'update':14} {'GFLOP':>7} {'least s':>8} {'median s':>9} {'ratio':>6} {'GFLOP/s':>8} {'of rate':>8}")
    for key, seconds_of in taken.items():
        ratios = [own / other for own, other in zip(seconds_of, taken[base], strict=True)]
        middle = statistics.median(seconds_of)
        rate = counted[base] / middle
        print(
            f"{key[0]:5}{key[1]:9} {counted[key] / 1e9:7.1f} {min(seconds_of):8.3f} {middle:9.3f} "
            f"{statistics.median(ratios):6.3f} {rate / 1e9:8.0f} {rate / rates[key[0]]:8.1%}"
        )
        if abs(counted[key] / counted[base] - 1) > 0.01:
            raise SystemExit(f"{key} has {counted[key]:,} FLOPs, but the plain loop has {counted[base]:,}.")


if __name__ == "__main__":
    main()
