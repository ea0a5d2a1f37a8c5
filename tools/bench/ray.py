"""What Ray and the rest of the system cost, how two workers scale, and how soon a run begins and recovers.

    python tools/bench/ray.py overhead [--quick]   the whole system against a bare PyTorch loop of the same updates
    python tools/bench/ray.py scaling [--quick]    two workers of one core against one
    python tools/bench/ray.py latency              seconds to the first update, and from kill -9 to the next one

The preset is SVHN's (3.4 million parameters, 20 posterior steps, batches of 100) on random images, fp32, one thread a
worker. `overhead` runs bare, system, bare, system, ... in turn, so that other load on the machine meets both alike.
CPU seconds are of the training process alone. Needs ray[default] and as many idle cores as workers.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).parents[2])  # this file's own folder would hide the package `ray`

from ebmscale.data.formats import Record, Source
from ebmscale.data.pack import pack
from ebmscale.density.losses import nce
from ebmscale.models.generator import Generator
from ebmscale.models.ratio_net import RatioNet
from ebmscale.storage import Storage
from tests.runtime.local_cluster import LocalCluster, running, train_command

BATCH, LATENT, SIGMA, NUM_IMAGES = 100, 100, 0.3, 4000
POSTERIOR_STEPS, POSTERIOR_SIZE = 20, 0.1
PRIOR_STEPS, PRIOR_SIZE, NUM_CHAINS = 5, 0.2, 500
RATIO_UPDATES, RATIO_BATCH, BUFFER = 8, 256, 3200
WARM = 2  # updates left out
LINE = r"^ +\S+ samples .*/s"
INTERVAL = 2  # updates from one line of metrics to the next


def settings(folder: Path, name: str, num_updates: int, num_workers: int, interval: int = INTERVAL) -> dict[str, Any]:
    """The configuration whose updates `bare_update` does as well: a first stage, without its evidence."""
    never = BATCH * 10**6
    return {
        "run": {"name": name},
        "storage": {"url": str(folder / "runs")},
        "data": {"url": str(folder / "data"), "num_streams": 20, "verify": "none"},
        "model": {"latent_dim": LATENT, "generator_width": 64, "sigma": SIGMA, "ratio_activation": "leaky_relu"},
        "posterior": {"num_steps": POSTERIOR_STEPS, "step_size": POSTERIOR_SIZE},
        "prior": {"num_steps": PRIOR_STEPS, "step_size": PRIOR_SIZE, "num_chains": NUM_CHAINS},
        "stages": {
            "max_stages": 1, "updates_per_batch": RATIO_UPDATES, "batch_size": RATIO_BATCH, "buffer_samples": BUFFER,
            "min_samples": never // 4, "max_samples": never, "settle_samples": never // 4, "evidence_every": never,
            "evidence_samples": 200,
        },
        "train": {"batch_size": BATCH, "max_samples": num_updates * BATCH, "generator": {"rate": 1e-4}},
        "checkpoint": {"every_samples": max(num_updates // 4, 1) * BATCH},
        "metrics": {"every_samples": interval * BATCH},
        "engine": "deepspeed",
        "num_threads": 1,
        "ray": {"num_workers": num_workers},
    }  # fmt: skip


def make_data(folder: Path) -> None:
    """Random images in shards, once."""
    if (folder / "data" / "manifest.json").exists():
        return
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 8, 8), np.uint8).repeat(4, 2).repeat(4, 3)
    records = (Record(f"{i:06d}", image, 0, "train") for i, image in enumerate(images))
    pack(Source("random", "random", (3, 32, 32), "uint8", ["none"], {"train": NUM_IMAGES}, lambda: records),
         Storage.at(folder / "data"))  # fmt: skip


class Bare:
    """The same arithmetic in plain PyTorch: images in memory, no ranks, no storage, nothing measured."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.generator = Generator(LATENT, (3, 32, 32), 64)
        self.copy = Generator(LATENT, (3, 32, 32), 64).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ratio = RatioNet(LATENT, (200, 200), "leaky_relu")
        self.optimizers = [
            torch.optim.Adam(self.generator.parameters(), 1e-4, (0.5, 0.999)),
            torch.optim.Adam(self.ratio.parameters(), 1e-3, (0.9, 0.999)),
        ]
        self.images = torch.rand(NUM_IMAGES, 3, 32, 32) * 2 - 1
        self.buffer, self.chains = torch.randn(BUFFER, LATENT), torch.randn(NUM_CHAINS, LATENT)

    def update(self, number: int) -> None:
        """Posterior chain, generator, prior chains, ratio."""
        first = number * BATCH % (NUM_IMAGES - BATCH)
        x = self.images[first : first + BATCH]
        self.copy.load_state_dict(self.generator.state_dict())

        def log_density(z: Tensor) -> Tensor:
            error = (x - self.copy(z)).square().flatten(1).sum(1)
            return -0.5 * z.square().sum(1) - 0.5 / SIGMA**2 * error

        z = langevin(log_density, torch.randn(BATCH, LATENT), POSTERIOR_STEPS, POSTERIOR_SIZE)
        loss = (x - self.generator(z)).square().flatten(1).sum(1).mean() * (0.5 / SIGMA**2)
        step(self.optimizers[0], self.generator, loss)
        self.buffer = torch.cat([self.buffer[BATCH:], z])
        self.chains = langevin(lambda z: -0.5 * z.square().sum(1), self.chains, PRIOR_STEPS, PRIOR_SIZE)
        for _ in range(RATIO_UPDATES):
            real = self.buffer[torch.randint(BUFFER, (RATIO_BATCH,))]
            made = self.chains[torch.randint(NUM_CHAINS, (RATIO_BATCH,))]
            step(self.optimizers[1], self.ratio, nce(self.ratio(real), self.ratio(made)))


def langevin(log_density: Any, z: Tensor, num_steps: int, size: float) -> Tensor:
    """A chain that needs one gradient a step."""
    for _ in range(num_steps + 1):
        z = z.detach().requires_grad_()
        [score] = torch.autograd.grad(log_density(z).sum(), z)
        z = z + size**2 / 2 * score + size * torch.randn_like(z)
    return z.detach()


def step(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
    """One step of an optimiser."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), float("inf"))  # the norm is reported
    optimizer.step()


def run_bare(num_updates: int) -> None:
    """In a process of its own: prints seconds of each update, and CPU seconds of all."""
    torch.set_num_threads(1)
    bare, seconds, cpu = Bare(), [], 0.0
    for number in range(num_updates):
        if number == WARM:
            cpu = time.process_time()
        begin = time.perf_counter()
        bare.update(number)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds[WARM:], "cpu_s": (time.process_time() - cpu) / (num_updates - WARM)}))


def measure_bare(num_updates: int) -> dict[str, Any]:
    """`run_bare` in a fresh process."""
    command = [sys.executable, __file__, "bare", "--updates", str(num_updates)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_system(folder: Path, name: str, num_updates: int, num_workers: int) -> dict[str, Any]:
    """Seconds of each update of a run on a local Ray, from its own metrics, and CPU seconds of all its workers."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings(folder, name, num_updates, num_workers)))
    with running(train_command(path)) as run:
        run.wait_for(LINE)
        worker = worker_processes(run.process.pid)
        ticks = [sum(cpu_seconds(pid) for pid in worker)]
        for _ in range(num_updates // INTERVAL - 2):  # with the last line the workers may be gone
            run.wait_for(LINE, 600)
            ticks.append(sum(cpu_seconds(pid) for pid in worker))
        if run.end() != 0:
            sys.exit(run.text)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["time"]["total_s"] / INTERVAL for line in lines][1:]
    return {"seconds": seconds, "cpu_s": (ticks[-1] - ticks[0]) / (len(ticks) - 1) / INTERVAL}


def worker_processes(driver: int) -> list[int]:
    """Ray's training workers below or beside a driver that started its own Ray."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            below = f"RAY_RAYLET_PID={raylet_of(driver)}\0".encode() in environment
            if below and title.startswith(b"ray::RayTrainWorker"):
                found.append(int(entry.name))
    return found


def raylet_of(driver: int) -> int:
    """The raylet that a driver started."""
    for child in Path(f"/proc/{driver}/task/{driver}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "raylet":
            return int(child)
    return -1


def cpu_seconds(pid: int) -> float:
    """Of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def overhead(folder: Path, quick: bool) -> None:
    """Bare and system in turn."""
    rounds, num_updates = (1, 8) if quick else (3, 30)
    bare: list[dict[str, Any]] = []
    system: list[dict[str, Any]] = []
    for number in range(rounds):
        bare.append(measure_bare(num_updates))
        system.append(measure_system(folder, f"overhead-{number}", num_updates, 1))
    for what, key in (("wall", "seconds"), ("CPU", "cpu_s")):
        a, b = (typical(found, key) for found in (bare, system))
        print(f"{what} seconds an update: bare {a:.3f}, system {b:.3f}, ratio {b / a:.3f} (aim: wall at most 1.03)")


def scaling(folder: Path, quick: bool) -> None:
    """One worker and two in turn."""
    rounds, num_updates = (1, 8) if quick else (3, 30)
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for number in range(rounds):
        for size, results in found.items():
            results.append(measure_system(folder, f"scaling-{size}-{number}", num_updates, size))
    one, two = (BATCH / typical(found[size], "seconds") for size in (1, 2))
    print(f"samples/s: one worker {one:.1f}, two {two:.1f}, ratio {two / one:.2f} (aim at least 1.9)")


def typical(found: list[dict[str, Any]], key: str) -> float:
    """Mean of a run's updates (checkpoints are among them), median over runs."""
    return statistics.median(float(np.mean(one[key])) for one in found)


def latency(folder: Path, quick: bool) -> None:
    """On a running cluster of two nodes, with a small model, so that the figures are Ray's and not the update's."""
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="ebm", dir="/tmp")) / "c")
    cluster.up(2, "--cpus", "1")
    try:
        path = folder / "latency.yaml"
        small = settings(folder, "latency", 10**5, 2, interval=1)
        small["model"]["generator_width"] = 2
        small["checkpoint"]["every_samples"] = 20 * BATCH
        path.write_text(yaml.safe_dump(small))
        begin = time.monotonic()
        with running(cluster.command(*train_command(path))) as run:
            run.wait_for(LINE)
            first_s = time.monotonic() - begin
            for _ in range(5 if quick else 50):
                run.wait_for(LINE)
            os.kill(cluster.processes("ray::RayTrainWorker")[1], signal.SIGKILL)
            begin = time.monotonic()
            run.wait_for("2 worker")
            line = run.wait_for(LINE)
            again_s = time.monotonic() - begin
            number = re.search(r"\S+", line)
            run.process.send_signal(signal.SIGTERM)
            run.end()
    finally:
        cluster.down()
    print(f"command to first update {first_s:.1f} s (aim at most 20)")
    print(f"kill -9 of a worker to the next update {again_s:.1f} s (aim at most 30), at {number and number[0]} samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "scaling", "latency", "bare"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="for data and runs (default: a temporary one)")
    given = parser.parse_args()
    if given.what == "bare":
        run_bare(given.updates)
        return
    with tempfile.TemporaryDirectory(prefix="ebmscale-bench-") as temporary:
        folder = given.folder or Path(temporary)
        make_data(folder)
        {"overhead": overhead, "scaling": scaling, "latency": latency}[given.what](folder, given.quick)


if __name__ == "__main__":
    main()
