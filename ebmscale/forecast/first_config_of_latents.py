"""A first configuration for latents that are given as data. The recipe is that of `configs/latents.yaml`."""

import math

from ebmscale.data.manifest import Manifest
from ebmscale.data.split import has_validation_part
from ebmscale.errors import DataError
from ebmscale.forecast.config_text import hundreds, name_for, quoted, thousands

LEAST_LATENTS = 200
STREAMS = 32
PASSES = 40  # over the set
BOUNDS = (400_000, 2_000_000)
HELD_OUT = 2048  # latents, if the set is large enough
LEAST_A_COORDINATE = 60  # latents, for a mixture of up to 60 Gaussians to be fitted to them


def config_of_latents(manifest: Manifest, url: str, num_samples: int | None = None) -> str:
    """The configuration as commented YAML.

    Args:
        manifest: of the set.
        url: of the set.
        num_samples: of the whole run; None: `PASSES` over the set, within bounds.

    Raises:
        DataError: the set has too few latents.
    """
    num = manifest.counts().get("train", 0)
    if num < LEAST_LATENTS:
        raise DataError(f"{url} has {num:,} latents to train on, and at least {LEAST_LATENTS} are needed.")
    shape = manifest.kind_of_samples[1]
    total = thousands(num_samples or min(max(PASSES * num, BOUNDS[0]), BOUNDS[1]), 20_000)
    held_out = round(max(min(0.2, HELD_OUT / num), 80 / num, 0.02), 3)
    share, buffer = has_validation_part(manifest), min(51_200, max(num // STREAMS, 1) * STREAMS)
    fitted = buffer >= LEAST_A_COORDINATE * math.prod(shape)
    values = {
        "name": name_for(url),
        "url": quoted(url),
        "fraction": "" if share else f"  validation_fraction: {held_out}  # never trained on; decides on stages\n",
        "streams": STREAMS,
        "window": max(1, min(512, num // STREAMS)),
        "latent": f"latent_shape: {list(shape)}" if len(shape) > 1 else f"latent_dim: {shape[0]}",
        "ratio": "{form: residual, hidden: [32, 64]}" if len(shape) == 3 else "{hidden: [200, 200], squares: true}",
        "base": "{base: moments, base_components: auto}" if fitted else "{base: standard}",
        "start": buffer if fitted else 0,
        "buffer": buffer,
        "batch": 512 if num >= 5000 else 128,
        "least": total // 20,
        "most": total // 5,
        "settle": total // 20,
        "evidence": max(total // 80, 1000),
        "total": total,
        "checkpoint": max(hundreds(total / 8), 512),
        "metrics": max(hundreds(total / 40), 512),
    }
    return _TEXT.format(**values)


_TEXT = """\
run:
  name: {name}  # the run is kept in the folder runs/{name}
  seed: 0

data:
  url: {url}
{fraction}  num_streams: {streams}  # at most that many workers
  shuffle_window: {window}

# The samples are latents themselves. Each coordinate is standardised, and brought back in what the run writes.
model:
  {latent}
  generator: {{form: identity}}
  ratio: {ratio}

posterior: {{start: encoder, num_steps: 0}}

# The base is a mixture of Gaussians, whose number held-out latents choose. The stages improve on it.
prior: {base}

# All lengths of time are numbers of samples: latents that were trained on, counted each time.
stages:
  start_samples: {start}
  max_stages: 4
  updates_per_batch: 1
  batch_size: {batch}
  buffer_samples: {buffer}
  min_samples: {least}
  max_samples: {most}
  settle_samples: {settle}
  evidence_every: {evidence}
  evidence_samples: 2048

train:
  batch_size: {batch}
  max_samples: {total}
  ratio: {{rate: 2.0e-3}}

checkpoint: {{every_samples: {checkpoint}}}
metrics: {{every_samples: {metrics}}}
"""
