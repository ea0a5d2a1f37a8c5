"""The report of tiny runs: its content, that it needs no other file, and its layout in a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import ebmscale
from ebmscale.config import parse_config
from ebmscale.data.formats import Record, Source
from ebmscale.data.pack import pack
from ebmscale.errors import StorageError
from ebmscale.model.image_grid import image_grid
from ebmscale.report.run_record import RunRecord
from ebmscale.report.run_report import write_report
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.loop import train
from ebmscale.training.metrics import EVENTS_FILE
from ebmscale.training.stage_samples import stage_file
from ebmscale.training.view import View
from ebmscale.world import World
from tests.conftest import PATIENCE_S

CONFIG = """
run: {name: tiny}
data: {url: "", format: digits, validation_fraction: 0.2, num_streams: 4, shuffle_window: 16}
model: {latent_dim: 4, generator: {width: 2}, ratio: {hidden: [16]}}
posterior: {num_steps: 3}
prior: {num_particles: 512, num_steps: 2, num_chains: 32, equilibrate_steps: 5, sample_steps: 8}
stages: {max_stages: 2, updates_per_batch: 2, batch_size: 32, buffer_samples: 64, min_samples: 200, max_samples: 400,
         settle_samples: 200, evidence_every: 100, evidence_samples: 64, significance: 0.01}
train: {batch_size: 50, max_samples: 2000, ratio: {rate: 0.01}}
checkpoint: {every_samples: 500}
metrics: {every_samples: 200, tensorboard: false}
"""
SECTIONS = ["samples", "reconstructions", "energies", "evidence", "chains", "time", "config"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_url):
    """A function that trains a tiny run and returns its storage."""
    urls = [f"storage.url={tmp_path_factory.mktemp('report')}", f"data.url={digits_url}"]

    def run(*overrides):
        config = parse_config(CONFIG, [*urls, *overrides])
        return Storage.at(train(config, View(quiet=True), World.alone(), StopSignal()))

    return run


@pytest.fixture(scope="module")
def reported(trained):
    """A run of two stages that was stopped once and resumed, with its report."""
    trained("train.max_samples=900")
    run = trained()
    assert write_report(run) == run.url_of("report.html")
    return run


@pytest.fixture
def copied(reported, tmp_path):
    """A copy of the run that a test may damage."""
    return Storage.at(shutil.copytree(reported.local_path(), tmp_path / "run"))


def page_of(run):
    write_report(run)
    return run.read_text("report.html")


def rewrite(run, name, change):
    run.publish(name, change(run.read_text(name)).encode())


def test_page_holds_every_section(reported):
    page = reported.read_text("report.html")
    num_stages = ebmscale.load(reported.url).prior.num_stages
    assert num_stages >= 1
    assert re.findall(r'<section id="(\w+)"', page) == SECTIONS
    assert all(f'href="#{name}"' in page for name in SECTIONS)
    assert "finished" in page
    assert "2,000 of 2,000 samples" in page
    assert "Held-out MSE" in page
    for stage in range(num_stages + 1):
        assert page.count(f"<figcaption>k = {stage}</figcaption>") == 2  # samples and energies
    assert page.count("<figcaption>prior chain, stage") == num_stages
    assert "posterior chain:" in page
    assert page.count("the ends of posterior chains") == 2  # reconstructions and energies
    assert "Held-out loss" in page
    assert "<td>Advance</td>" in page
    assert "<td>Settling</td>" in page
    assert "hidden:" in page
    assert f'ebmscale.load("{reported.url}")' in page
    assert len(page) < 1_500_000


def test_samples_at_every_stage_s_end_are_kept_and_shown(reported):
    frozen = [event for event in RunRecord.of(reported).measured if event["freeze"]]
    assert frozen
    page = reported.read_text("report.html")
    for event in frozen:
        picture = Image.open(reported.local_path(stage_file(event["stage"], event["samples_seen"])))
        assert picture.size == (5 * 64 + 4 * 2, 5 * 64 + 4 * 2)
        assert f"k = {event['stage']}, {event['samples_seen']:,} samples" in page


def test_page_is_self_contained(reported):
    page = reported.read_text("report.html")
    assert not re.search(r"<(script|link|iframe|object|base)\b|@import|url\(", page)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)


def test_samples_are_what_the_model_samples(reported):
    images = ebmscale.load(reported.url).sample(64)
    assert reported.read_bytes("samples.png") == image_grid(images, columns=8, scale=8)
    picture = Image.open(reported.local_path("samples.png"))
    assert picture.size == (8 * 64 + 7 * 2, 8 * 64 + 7 * 2)


def test_same_run_same_page(reported):
    assert page_of(reported) == page_of(reported)


def test_a_page_shows_samples_by_layer_of_two_layers_alone(trained, reported):
    assert "By layer of the latents" not in reported.read_text("report.html")
    page = page_of(trained("run.name=layers", "model.generator.top=1", "train.max_samples=500"))
    assert "By layer of the latents" in page


def test_missing_data_set_is_said(copied):
    rewrite(copied, "config.yaml", lambda text: re.sub(r"(\n  url: .*)digits", r"\1gone", text))
    page = page_of(copied)
    assert "gone, and there is no set any more" in page
    assert re.findall(r'<section id="(\w+)"', page) == SECTIONS
    assert "<figcaption>reconstructions" not in page
    assert "posterior chain:" not in page
    assert "<figcaption>k = 1" in page
    assert "prior chain, stage 1" in page


def test_no_ratio(trained):
    page = page_of(trained("run.name=gaussian", "stages.max_stages=0", "train.max_samples=300"))
    assert "trains no ratio" in page
    assert "exact draws" in page
    assert "Mean squared error" in page
    assert "<figcaption>k = 0" in page
    assert "Decisions" not in page


def test_without_posterior_chains_latents_are_draws_of_the_encoder(trained):
    keys = ("posterior.start=encoder", "posterior.num_steps=0", "stages.max_stages=0", "train.max_samples=100")
    page = page_of(trained("run.name=encoder", *keys))
    assert page.count("draws of the encoder") == 2
    assert "posterior chain" not in page


def test_stopped_before_the_first_evidence(trained):
    run = trained("run.name=early", "train.max_samples=50")
    rewrite(run, "config.yaml", lambda text: text.replace("max_samples: 50\n", "max_samples: 200\n"))
    for name in ("events.jsonl", "metrics.jsonl"):
        rewrite(run, name, lambda text: "")
    page = page_of(run)
    assert "stopped at 25%" in page
    assert "50 of 200 samples" in page
    assert "No evidence has been measured yet" in page
    assert "No interval of metrics" in page


def test_a_record_beyond_the_checkpoint_and_numbers_that_are_not_finite(copied):
    event = RunRecord.of(copied).measured[-1] | {"samples_seen": 2500, "decision": "RollBack", "stage": 2}
    event["evidence"] = dict.fromkeys(event["evidence"])
    copied.append(EVENTS_FILE, json.dumps(event) + "\n")
    page = page_of(copied)
    assert "The record continues for 500 samples" in page
    assert "nan ± nan" in page
    assert "<td>RollBack</td>" in page


def test_the_headline_is_of_the_frozen_stages(copied):
    """A stage that was rejected after them is in the table of decisions only."""
    record = RunRecord.of(copied)
    frozen = [event for event in record.measured if event["freeze"]][-1]
    evidence = frozen["evidence"] | {"kl_bound": 77.0, "kl_bound_error": 1.0}
    rejected = frozen | {"samples_seen": 2500, "decision": "Finish", "freeze": False, "stage": 3, "evidence": evidence}
    copied.append(EVENTS_FILE, json.dumps(rejected) + "\n")
    page = page_of(copied)
    headline = page[: page.index('<section id="samples"')]
    assert "77" in page
    assert "77" not in headline
    assert f"of stage {frozen['stage']}" in headline


def test_the_page_says_what_its_numbers_mean(reported):
    page = reported.read_text("report.html")
    said = re.findall(r'<li class="(\w+)"><b>([\w ]+)</b>', page)
    assert [topic for _, topic in said] == ["prior", "log Z", "stages"]
    assert {grade for grade, _ in said} <= {"good", "bad", "unclear"}
    assert "Gap by stage, in nats: p_0 " in page


def test_run_without_checkpoint(copied):
    copied.delete("checkpoints")
    with pytest.raises(StorageError, match="no valid checkpoint"):
        write_report(copied)


def test_credentials_stay_out(copied):
    secret = "s3://name:password@bucket/digits"
    rewrite(copied, "config.yaml", lambda text: text.replace("source: null", f"source: {secret}"))
    page = page_of(copied)
    assert "password" not in page
    assert "s3://***@bucket/digits" in page


def test_colour_images(trained, tmp_path):
    def records():
        for i in range(120):
            image = np.random.default_rng(i).integers(0, 256, (3, 32, 32), dtype=np.uint8)
            yield Record(f"train-{i:06d}", image, -1, "train")

    pack(Source("noise", "toy", (3, 32, 32), "uint8", [], {"train": 120}, records), Storage.at(tmp_path))
    run = trained("run.name=colour", "data.format=null", f"data.url={tmp_path}", "train.max_samples=100")
    assert "3 x 32 x 32 images" in page_of(run)
    assert Image.open(run.local_path("samples.png")).mode == "RGB"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(details => details.open = true);
  const images = [...document.images];
  parent.postMessage({width: innerWidth, scroll: document.documentElement.scrollWidth, images: images.length,
    loaded: images.filter(image => image.naturalWidth > 0).length,
    beyond: images.filter(image => image.getBoundingClientRect().right > innerWidth).length}, "*");
});</script>"""
FRAME = """<!doctype html><body style="margin:0">
<script>addEventListener("message", event => document.title = JSON.stringify(event.data));</script>
<iframe src="page.html" style="border:0; width:{width}px; height:3000px"></iframe>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_page_in_a_browser(reported, tmp_path, width):
    """In a frame, since a window cannot be as narrow as a phone."""
    (tmp_path / "page.html").write_text(reported.read_text("report.html") + PROBE)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    screenshot = tmp_path / "page.png"
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
        f"--window-size={max(width, 500)},3000",
    ]
    address = (tmp_path / "frame.html").as_uri()

    def chromium(*more):
        command = [CHROMIUM, *flags, *more, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout

    dom = chromium("--virtual-time-budget=5000", "--dump-dom")
    found = json.loads(re.search(r"<title>(.*)</title>", dom)[1])
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["loaded"] == found["images"] > 10
    assert found["beyond"] == 0
    chromium(f"--screenshot={screenshot}")
    assert len(np.unique(np.asarray(Image.open(screenshot).convert("L")))) > 20
