"""The latents of the samples of a packed set, as a packed set of latents: a shard for each shard, which workers share.

    OUT/NAME-z-PART-000000.tar   the latents of the samples of one shard, with their keys and labels
    OUT/manifest.json            written last
    OUT/.encode                  notes on the shards that are done, while the job is not

Shapes: N samples of a shard, B samples of a chunk, S the shape of a latent.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ebmscale.config import RunConfig, parse_config
from ebmscale.data.chunks import read_samples
from ebmscale.data.decode import POSTERIORS
from ebmscale.data.encode import ENDINGS, Encoded, encode_raw
from ebmscale.data.found import Found
from ebmscale.data.manifest import FILE, Manifest, SetAbout
from ebmscale.data.set_summary import SetSummary
from ebmscale.data.shard import IndexedShard, Shard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.data.shard_writer import ShardWriter
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.documents import read_json
from ebmscale.errors import ConfigError, DamagedError, DivergenceError
from ebmscale.evaluate.images import chunk_seed, fitting_manifest
from ebmscale.model.build import build_ratio_network
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.load import open_model
from ebmscale.model.pixels import to_pixels
from ebmscale.part_files import PartFiles
from ebmscale.storage import Storage
from ebmscale.stored import as_form
from ebmscale.training.first_networks import first_networks
from ebmscale.training.run_data import shape_of_samples
from ebmscale.world import device_of

NOTES = ".encode"
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Coder:
    """What encodes: the model of a run, or the first networks of a configuration, such as a pretrained pair.

    Attributes:
        run: folder of a run or an export; None for a configuration.
        config: text of the configuration; empty for a run.
        digest: of the checkpoint, or of the configuration.
    """

    run: Storage | None
    config: str
    digest: str

    def open(self, data: Storage, manifest: Manifest) -> LatentModel:
        """The model. Raises as `open_model` and as `first_networks`."""
        if self.run is not None:
            return open_model(self.run)
        config = parse_config(self.config)
        shape = shape_of_samples(data, manifest, config)
        networks = first_networks(config, shape, data, manifest).requires_grad_(False)
        prior = RatioSequence(StandardNormal(config.model.latent_dim), build_ratio_network(config))
        return LatentModel(config, networks, prior, shape, 0)


def coder_of_run(run: Storage) -> Coder:
    """The model in the newest valid checkpoint of a run, or in an export."""
    model = open_model(run)
    return Coder(run, "", f"{model.config.run.name}-{model.samples_seen}")


def coder_of_config(config: RunConfig) -> Coder:
    """The networks that a configuration describes, with the weights that it names.

    Raises:
        ConfigError: it has no encoder, or one that is yet to be trained.
    """
    block = config.model.encoder
    if not config.uses_encoder:
        raise ConfigError("The configuration has no encoder (posterior.start: encoder), so train it, and give the run.")
    if block.weights is None and (block.class_path is None or block.train):
        raise ConfigError(
            "The encoder of the configuration is yet to be trained: name its weights in model.encoder.weights, or "
            "train it, and give the run."
        )
    text = config.dump()
    return Coder(None, text, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class EncodeJob:
    """The latents of all samples of a set, as a job in parts (see `runtime.part_job.PartedJob`).

    Attributes:
        coder: what encodes.
        data: folder of the set.
        identity: of the set.
        num_parts: its shards.
        out: folder of the latents.
        seed: of posterior chains.
        device: where to compute.
    """

    coder: Coder
    data: Storage
    identity: str
    num_parts: int
    out: Storage
    seed: int
    device: str

    @classmethod
    def of(cls, coder: Coder, data: Storage, out: Storage, seed: int, device: str) -> "EncodeJob":
        """The job, begun in its folder or continued there.

        Raises:
            ConfigError: the folder has another packed set or parts of another job, or the samples are latents already.
        """
        manifest = Manifest.load(data)
        if coder.open(data, manifest).is_given:
            raise ConfigError("The samples of this run are latents already.")
        if out.exists(FILE):
            raise ConfigError(f"{out.url} holds a packed set already; delete it, or give another address.")
        job = cls(coder, data, manifest.identity(), len(manifest.shards), out, seed, device)
        job.notes.begin({
            "job": "latents",
            "model": coder.digest,
            "data": str(data.url),
            "identity": job.identity,
            "seed": seed,
        })  # fmt: skip
        return job

    @property
    def notes(self) -> PartFiles:
        """A row of the manifest for each shard that is done."""
        return PartFiles(replace(self.out, url=self.out.url.below(NOTES)), ".json")

    def done(self) -> set[int]:
        """The shards that are done."""
        return self.notes.done()

    def open(self) -> Callable[[int], None]:
        """What does a shard, with the model opened.

        Raises:
            ConfigError: the set has changed since.
        """
        manifest = Manifest.load(self.data)
        if manifest.identity() != self.identity:
            raise ConfigError("The set has changed since the latents were begun; begin at another place.")
        model = self.coder.open(self.data, manifest).to(device_of(self.device))
        fitting_manifest(model, self.data)

        def encode_shard(number: int) -> None:
            index = manifest.index(number)
            found = Found.of(number, index, np.arange(len(index)))
            images = read_samples(self.data, manifest, found)
            part = manifest.shards[number].part
            writer = ShardWriter(f"{manifest.name}-z-{part}-{number:06d}.tar", part, ENDINGS[POSTERIORS])
            latents = [
                _latents(model, rows, chunk_seed(self.seed, (number << 20) + chunk))
                for chunk, rows in enumerate(images.split(ROWS_AT_ONCE))
            ]
            for key, label, values in zip(found.texts(), index.labels.tolist(), torch.cat(latents), strict=True):
                if not bool(values.isfinite().all()):
                    raise DivergenceError(f"The latent of sample {key} is not finite; encode by another checkpoint.")
                writer.add(Encoded(key, encode_raw(values.numpy()), label, part))
            shard, content = writer.finish()
            self.out.publish(shard.file, content)
            self.out.publish(shard.row.index_file, shard.index_data)
            self.notes.write(number, json.dumps(asdict(shard.row)).encode())

        return encode_shard

    def join(self) -> Manifest:
        """Writes the manifest of the latents, after all shards are done.

        Raises:
            DamagedError: a note or an index is damaged.
        """
        manifest, summary = Manifest.load(self.data), SetSummary()
        for number in range(self.num_parts):
            where = self.out.url_of(f"{NOTES}/{self.notes.name(number)}")
            row = as_form(read_json(self.notes.read(number), where, DamagedError), Shard, where)
            summary.add(IndexedShard(row, ShardIndex.from_bytes(self.out.read_bytes(row.index_file))[0]))
        model = self.coder.open(self.data, manifest)
        encoding, shape = ("raw", model.config.model.shape)
        if gives_posteriors(model):
            encoding, shape = POSTERIORS, (2, *shape)
        about = SetAbout(f"{manifest.name}-z", "latents", encoding, shape, "float32", manifest.classes)
        made = summary.manifest(self.out, about)
        made.save(self.out)
        self.notes.remove()
        return made


def gives_posteriors(model: LatentModel) -> bool:
    """Whether latents are means and standard deviations (2, *S), and not draws (*S) at the ends of chains."""
    return model.config.is_amortised


def _latents(model: LatentModel, images: Tensor, seed: int) -> Tensor:
    """Posteriors (B, 2, *S), or draws (B, *S), of samples (B, ...)."""
    shape, x = model.config.model.shape, to_pixels(images)
    if not gives_posteriors(model):
        return model.encode(x, seed).view(-1, *shape)
    mean, std = model.posterior(x)
    return torch.stack([mean, std], 1).view(-1, 2, *shape)
