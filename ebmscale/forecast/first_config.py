"""A first configuration for a packed set: sizes from the set, networks for the machine, lengths from the set's size.

The recipe is that of `configs/photos.yaml`. First an encoder and a generator are trained under N(0, I). Then a mixture
of Gaussians is fitted to their latents, and the stages of the prior improve on it.
"""

import shlex
import tempfile
from typing import NamedTuple

import torch

from ebmscale.config import parse_config, with_values
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import has_validation_part
from ebmscale.errors import DataError
from ebmscale.forecast.config_text import hundreds, name_for, quoted, thousands
from ebmscale.forecast.dry_run import dry_run
from ebmscale.forecast.first_config_of_latents import config_of_latents
from ebmscale.machine import num_cpus
from ebmscale.networks import check_side
from ebmscale.terminal import duration
from ebmscale.world import World, device_of

LEAST_IMAGES = 80
STREAMS = 32
LEAST_UPDATES = 24  # of a stage: its longest time is at least this many batches
HELD_OUT = 512  # images that are held out, if the set is large enough
LEAST_SAMPLES = 2000  # that generator and encoder are trained on; enough to fit a mixture
BUFFER = 25_600
PASSES = 50  # epochs of generator and encoder
BOUNDS = {False: (60_000, 200_000), True: (200_000, 2_000_000)}
"""The bounds on the samples that generator and encoder are trained on, without and with a GPU."""


class Size(NamedTuple):
    """Settings for images of one size: latent dimensions, widths without and with a GPU, and sigma."""

    latent_dim: int
    widths: tuple[int, int]
    sigma: float


SIZES = {
    8: Size(16, (12, 24), 0.3),
    28: Size(32, (16, 64), 0.3),
    32: Size(64, (24, 96), 0.3),
    64: Size(64, (16, 64), 0.2),
    128: Size(64, (8, 32), 0.2),
}


def default_samples(num_images: int, has_gpu: bool) -> int:
    """The number of samples that generator and encoder are trained on, for a set of `num_images` images."""
    least, most = BOUNDS[has_gpu]
    return min(max(PASSES * num_images, least), most)


def first_config(manifest: Manifest, url: str, has_gpu: bool, num_samples: int | None = None) -> str:
    """The configuration as commented YAML.

    Args:
        manifest: of the set.
        url: of the set.
        has_gpu: whether the run has a GPU.
        num_samples: that generator and encoder are trained on, and of latents those of the whole run; None takes
            a default.

    Raises:
        DataError: the set holds no images, or too few.
        ConfigError: there is no network for images of this size.
    """
    images = manifest.counts().get("train", 0)
    if manifest.kind_of_samples[0] != "images":
        return config_of_latents(manifest, url, num_samples)
    if len(manifest.image_shape) != 3:
        raise DataError(
            f"{url} holds {manifest.dtype} arrays of shape {manifest.image_shape}, and training takes images "
            "(C, H, W), or latents, which are floats; pack such."
        )
    if images < LEAST_IMAGES:
        raise DataError(
            f"{url} has {images:,} images to train on, and at least {LEAST_IMAGES} are needed; pack more images."
        )
    channels, height, width = manifest.image_shape
    check_side((channels, height, width))
    size = SIZES[min(SIZES, key=lambda side: abs(side - height))]
    batch = 256 if has_gpu else 64 if height >= 64 else 128
    generator = thousands(num_samples or default_samples(images, has_gpu), LEAST_SAMPLES)
    stage = -(-max(generator // 5, LEAST_UPDATES * batch) // 600) * 600  # its parts are round numbers
    total = generator + 7 * stage // 2
    held_out = round(max(min(0.2, HELD_OUT / images), 40 / images, 0.02), 3)
    values = {
        "name": name_for(url),
        "url": quoted(url),
        "fraction": "" if has_validation_part(manifest) else f"  validation_fraction: {held_out}  # {_OF_DECISIONS}\n",
        "flip": str(channels == 3 and manifest.format == "folder").lower(),
        "streams": STREAMS,
        "window": max(1, min(128, images // STREAMS)),
        "latent": size.latent_dim,
        "width": size.widths[has_gpu],
        "sigma": size.sigma,
        "components": "auto",
        "chains": 4096 if has_gpu else 2048,
        "generator": generator,
        "buffer": min(BUFFER, generator // (2 * STREAMS) * STREAMS),
        "stage": total - generator,
        "least": stage // 6,
        "evidence": stage // 6,
        "batch": batch,
        "total": total,
        "checkpoint": max(hundreds(total / 8), batch),
        "metrics": max(hundreds(total / 80), batch),
        "threads": 1 if height <= 8 else 0,
    }
    return _TEXT.format(**values)


def timed_config(
    manifest: Manifest, url: str, file: str, device: str = "auto", wanted_s: float | None = None
) -> tuple[str, float]:
    """`first_config` for this machine, after a dry run of it, with a head that says how long the run takes.

    Args:
        manifest: of the set.
        url: of the set.
        file: where it will be written, for the commands in its head.
        device: `auto`, `cpu` or `cuda`.
        wanted_s: how long the run should take, in seconds; None keeps the default length.

    Returns:
        The text, and the upper bound of the forecast in seconds.

    Raises:
        EbmscaleError: as `first_config`, and what the run itself would raise.
    """
    world = World.alone(str(device_of(device)))
    has_gpu = world.device.type == "cuda"
    text = first_config(manifest, url, has_gpu)
    config = parse_config(text)
    with tempfile.TemporaryDirectory(prefix="ebmscale-init-") as folder:
        forecast = dry_run(with_values(config, {"storage.url": folder}, "init"), world)
    seconds = forecast.train_s
    if wanted_s is not None:
        fixed = forecast.costs.freezes(config.most_stages) + forecast.costs.base
        share = (wanted_s - fixed) / (seconds - fixed)
        length = config.stages.start_samples if config.networks_train else config.train.max_samples
        text = first_config(manifest, url, has_gpu, max(1, int(length * share)))
        seconds = fixed + (seconds - fixed) * parse_config(text).train.max_samples / config.train.max_samples
    where = torch.cuda.get_device_name() if has_gpu else f"{num_cpus()} CPU core(s)"
    kind, sizes = manifest.kind_of_samples
    what = f"{'images' if kind == 'images' else 'latents'} of {'x'.join(map(str, sizes))}"
    head = (
        f"# {sum(manifest.counts().values()):,} {what}. It takes at most {duration(seconds)} on {where}:",
        f"#   ebmscale train {shlex.quote(file)}",
        "# `ebmscale keys KEY` explains a key. With --dry-run the command above forecasts time, memory and disk.",
    )
    return "\n".join([*head, text]), seconds


_OF_DECISIONS = "share that is never trained on; decisions are taken on it"

_TEXT = """\
run:
  name: {name}  # the run is kept in the folder runs/{name}
  seed: 0

data:
  url: {url}
{fraction}  flip: {flip}  # mirror images left to right at random; false for text and digits
  num_streams: {streams}  # at most that many workers
  shuffle_window: {window}

# A larger width gives sharper images and takes more time. A smaller sigma gives more exact reconstructions, whose
# latents are harder to learn.
model:
  latent_dim: {latent}
  generator: {{form: residual, width: {width}}}
  encoder: {{width: {width}}}
  sigma: {sigma}
  ratio: {{hidden: [200, 200], squares: true}}

# First an encoder and a generator are trained under N(0, I). Latents of images are the encoder's draws.
posterior: {{start: encoder, num_steps: 0}}

# Then the prior is learned: a mixture of Gaussians is fitted to the latents, and stages improve on it.
prior:
  base: moments
  base_components: {components}
  num_chains: {chains}
  num_steps: 4
  step_size: 0.2
  equilibrate: tilt
  sample_steps: 100

# All lengths of time are numbers of samples: images that were trained on, counted each time.
stages:
  start_samples: {generator}  # the prior begins where the generator stops
  max_stages: 3
  batch_size: 256
  buffer_samples: {buffer}
  min_samples: {least}
  max_samples: {stage}  # a stage lasts as long as it pays
  evidence_every: {evidence}
  evidence_samples: 512

train:
  batch_size: {batch}
  max_samples: {total}
  generator: {{rate: 1.0e-3, stop_samples: {generator}, final_factor: 0.1}}  # longer: raise this and start_samples
  ratio: {{rate: 1.0e-3}}

checkpoint: {{every_samples: {checkpoint}}}
metrics: {{every_samples: {metrics}}}
precision: auto  # bf16 if the machine is faster with it
num_threads: {threads}  # of the processor; 0 leaves it to torch
"""
