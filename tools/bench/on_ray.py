"""The overhead of Ray and of the whole system, the scaling of two workers, and the times to start and to recover.

    python tools/bench/on_ray.py overhead   the whole system against a bare PyTorch loop of the same updates
    python tools/bench/on_ray.py scaling    two workers of one core against one, and the limit of the two cores
    python tools/bench/on_ray.py latency    seconds to the first update, and from kill -9 to the next one

The preset is SVHN's (3.4 million parameters, 20 posterior steps, batches of 100) on random images, with one thread a
worker and a checkpoint every 8 updates. By default it is in fp32, with the fastest form of the generator in chains. The
bare loop is always plain fp32. Variants alternate, so that other load on the machine affects all of them. Every
measurement is added to results.jsonl in --folder, and the table shows the medians of all measurements in that file:
the wall time; the CPU seconds of the busiest worker; the CPU seconds of all processes of the run, including Ray's own,
divided by its cores; and the share of the machine that other processes took. CPU seconds depend little on other load.
It needs ray[default] and two cores.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from ebmscale.data.formats import Record, Source
from ebmscale.data.pack import pack
from ebmscale.storage import Storage
from tests.runtime.local_cluster import LocalCluster, running, train_command
from tools.bench import bare
from tools.bench.window import MARK, Window

BATCH = bare.BATCH
LINE = r"^ +\S+ samples .*/s"
INTERVAL = 2  # updates from one line of metrics to the next
CHECKPOINT_EVERY = 8  # updates


class Bench(NamedTuple):
    """The folder of data, runs and results, and the computation of the system; the bare loop is plain fp32."""

    folder: Path
    precision: str
    kernel: str

    @property
    def computation(self) -> str:
        """The name in the results."""
        return f"{self.precision}, {self.kernel} kernel"


def settings(bench: Bench, name: str, num_updates: int, num_workers: int, interval: int = INTERVAL) -> dict[str, Any]:
    """The configuration with the same updates as `bare`: a first stage without evidence."""
    never = BATCH * 10**6
    return {
        "run": {"name": name},
        "storage": {"url": str(bench.folder / "runs")},
        "data": {"url": str(bench.folder / "data"), "num_streams": 20, "verify": "none"},
        "model": {
            "latent_dim": bare.LATENT, "generator": {"width": 64}, "sigma": bare.SIGMA,
            "ratio": {"activation": "leaky_relu"},
        },
        "posterior": {
            "num_steps": bare.POSTERIOR_STEPS, "step_size": bare.POSTERIOR_SIZE, "kernel": bench.kernel,
        },
        "prior": {"num_steps": bare.PRIOR_STEPS, "step_size": bare.PRIOR_SIZE, "num_chains": bare.NUM_CHAINS},
        "stages": {
            "max_stages": 1, "updates_per_batch": bare.RATIO_UPDATES, "batch_size": bare.RATIO_BATCH,
            "buffer_samples": bare.BUFFER, "min_samples": never // 4, "max_samples": never,
            "settle_samples": never // 4, "evidence_every": never, "evidence_samples": 200,
        },
        "train": {"batch_size": BATCH, "max_samples": num_updates * BATCH, "generator": {"rate": 1e-4}},
        "checkpoint": {"every_samples": CHECKPOINT_EVERY * BATCH},
        "metrics": {"every_samples": interval * BATCH},
        "engine": "deepspeed",
        "precision": bench.precision,
        "num_threads": 1,
        "ray": {"num_workers": num_workers},
    }  # fmt: skip


def make_data(folder: Path) -> None:
    """Packs random images, unless they are packed already."""
    if (folder / "data" / "manifest.json").exists():
        return
    images = np.random.default_rng(0).integers(0, 256, (bare.NUM_IMAGES, 3, 8, 8), np.uint8).repeat(4, 2).repeat(4, 3)
    records = (Record(f"{i:06d}", image, 0, "train") for i, image in enumerate(images))
    pack(Source("random", "random", (3, 32, 32), "uint8", ["none"], {"train": bare.NUM_IMAGES}, lambda: records),
         Storage.at(folder / "data"))  # fmt: skip


def measure_bare(num_updates: int, num_processes: int) -> dict[str, float]:
    """The bare loop in new processes, each on its own core with its share of a batch, without communication."""
    command = [sys.executable, str(bare.__file__), "--updates", str(num_updates), "--share", str(1 / num_processes)]
    window = Window("")
    started = [
        subprocess.Popen(
            [*command, "--core", str(core)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for core in range(num_processes)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    cpu = [one["cpu_s"] for one in found]
    spent = sum(one["all_cpu_s"] for one in found)
    return {
        "wall_s": max(one["wall_s"] for one in found),
        "worker_cpu_s": max(cpu),
        "cpu_a_core_s": statistics.mean(cpu),
        "others": window.close(1, 1, spent)["others"],
    }


def measure_system(bench: Bench, num_updates: int, num_workers: int, num_cores: int) -> dict[str, float]:
    """A run with its own Ray on the first cores, measured from its first line of metrics to the last but one."""
    mark = uuid.uuid4().hex
    path = bench.folder / f"{mark}.yaml"
    path.write_text(yaml.safe_dump(settings(bench, f"{num_workers}-{mark}", num_updates, num_workers)))
    command = ["taskset", "-c", f"0-{num_cores - 1}", *train_command(path)]
    with running(command, **{MARK: mark}) as run:
        run.wait_for(LINE, 600)
        window = Window(mark)
        num_lines = num_updates // INTERVAL - 2  # after the last line the workers may be gone
        for _ in range(num_lines):
            run.wait_for(LINE, 600)
        found = window.close(num_lines * INTERVAL, num_cores)
        if run.end(600) != 0:
            sys.exit(run.text)
    return found


VARIANTS: dict[str, Callable[[Bench, int], dict[str, float]]] = {
    "bare, one process": lambda bench, n: measure_bare(n, 1),
    "bare, two side by side, half a batch each": lambda bench, n: measure_bare(n, 2),
    "system, 1 worker on one core, Ray's own processes too": lambda bench, n: measure_system(bench, n, 1, 1),
    "system, 1 worker on one core, Ray's own processes on another": lambda bench, n: measure_system(bench, n, 1, 2),
    "system, 2 workers on two cores": lambda bench, n: measure_system(bench, n, 2, 2),
}
BARE, TWO_BARE, CONFINED, ONE, TWO = VARIANTS


def measure_alternately(bench: Bench, names: list[str], rounds: int, num_updates: int) -> dict[str, dict[str, float]]:
    """Measures the variants alternately; prints and returns the medians of all their measurements in the folder."""
    file = bench.folder / "results.jsonl"
    for _ in range(rounds):
        for name in names:
            found = VARIANTS[name](bench, num_updates) | {"load": os.getloadavg()[0]}
            with file.open("a") as out:
                out.write(json.dumps({"name": name, "computation": bench.computation, **found}) + "\n")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    medians = {}
    print(f"{'seconds an update (medians)':62} rounds    wall  worker CPU  CPU a core  others  load")
    for name in names:
        wanted = {"name": name} if name in (BARE, TWO_BARE) else {"name": name, "computation": bench.computation}
        mine = [line for line in lines if wanted.items() <= line.items()]
        numbers = [key for key, value in mine[0].items() if not isinstance(value, str)]
        middle = {key: statistics.median(one[key] for one in mine) for key in numbers}
        medians[name] = middle
        print(
            f"{name:62} {len(mine):6} {middle['wall_s']:7.2f} {middle['worker_cpu_s']:11.2f} "
            f"{middle['cpu_a_core_s']:11.2f} {middle['others']:7.0%} {middle['load']:5.1f}"
        )
    return medians


def overhead(bench: Bench, rounds: int, num_updates: int) -> None:
    """Measures the bare loop and the system alternately."""
    found = measure_alternately(bench, [BARE, ONE], rounds, num_updates)
    for what, key in (("wall", "wall_s"), ("CPU of the worker", "worker_cpu_s")):
        print(f"system against bare, {what}: {found[ONE][key] / found[BARE][key]:.3f} (aim: at most 1.03)")


def scaling(bench: Bench, rounds: int, num_updates: int) -> None:
    """Measures one worker, two workers and the limit of the cores alternately."""
    found = measure_alternately(bench, list(VARIANTS), rounds, num_updates)
    for what, one, two in (
        ("bare: the machine's ceiling", BARE, TWO_BARE),
        ("system, one core against two", CONFINED, TWO),
        ("system, one worker with a core for Ray against two without", ONE, TWO),
    ):
        ratios = ", ".join(
            f"{label} {found[one][key] / found[two][key]:.2f}"
            for label, key in (
                ("wall", "wall_s"),
                ("busiest worker's CPU", "worker_cpu_s"),
                ("CPU a core", "cpu_a_core_s"),
            )
            if not (key == "cpu_a_core_s" and one == ONE)  # it had two cores
        )
        print(f"samples/s of two over one, {what}: {ratios} (aim: at least 1.9)")


def latency(bench: Bench, rounds: int, _num_updates: int) -> None:
    """Times of a run on a cluster of two nodes; the model is small, so that they show Ray and not the update."""
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="ebm", dir="/tmp")) / "c")
    cluster.up(2, "--cpus", "1")
    found: list[tuple[float, float]] = []
    try:
        for number in range(rounds):
            found.append(start_and_recover(cluster, bench, f"latency-{number}"))
            print("first update {:.1f} s, after kill -9 {:.1f} s".format(*found[-1]), f"load {os.getloadavg()[0]:.1f}")
    finally:
        cluster.down()
    first_s, again_s = (statistics.median(one[part] for one in found) for part in (0, 1))
    print(f"command to first update {first_s:.1f} s (aim at most 20)")
    print(f"kill -9 of a worker to the next update {again_s:.1f} s (aim at most 30)")


def start_and_recover(cluster: LocalCluster, bench: Bench, name: str) -> tuple[float, float]:
    """Seconds from the command to the first line of metrics, and from the death of a worker to the next one."""
    small = settings(bench, name + uuid.uuid4().hex[:8], 10**5, 2, interval=1)
    small["model"]["generator"]["width"] = 2
    small["checkpoint"]["every_samples"] = 20 * BATCH
    path = bench.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    begin = time.monotonic()
    with running(cluster.command(*train_command(path))) as run:
        run.wait_for(LINE)
        first_s = time.monotonic() - begin
        for _ in range(30):
            run.wait_for(LINE)
        os.kill(cluster.processes("ray::RayTrainWorker")[1], signal.SIGKILL)
        begin = time.monotonic()
        run.wait_for("2 worker")
        run.wait_for(LINE)
        again_s = time.monotonic() - begin
        run.process.send_signal(signal.SIGTERM)
        run.end()
    return first_s, again_s


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[Bench, int, int], None]] = {"overhead": overhead, "scaling": scaling, "latency": latency}
    parser.add_argument("what", choices=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=20, help="updates of each run, an even number of at least 8")
    parser.add_argument("--folder", type=Path, help="folder for data, runs and results (default: a temporary one)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="precision of the system")
    parser.add_argument("--kernel", choices=["auto", "plain"], default="auto", help="kernel of its posterior chains")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ebmscale-bench-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_data(folder)
        parts[given.what](Bench(folder, given.precision, given.kernel), given.rounds, given.updates)


if __name__ == "__main__":
    main()
