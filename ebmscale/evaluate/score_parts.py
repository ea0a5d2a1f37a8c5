"""Scores of many images in parts, which several workers share: a Parquet file for each part.

Shapes: M images of the reference.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ebmscale.errors import ConfigError
from ebmscale.evaluate.images import ImageSet, open_all_images
from ebmscale.evaluate.score_file import part_bytes
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.load import open_model
from ebmscale.model.pieces import parse_tensors
from ebmscale.part_files import PartFiles, part_size
from ebmscale.storage import Storage
from ebmscale.world import World, device_of

REFERENCE_FILE = "_reference.safetensors"


@dataclass(frozen=True)
class ScoreJob:
    """The scores of all images of a set, as a job in parts (see `runtime.part_job.PartedJob`).

    Attributes:
        run: folder of the model.
        samples_seen: of its checkpoint.
        data: folder of the packed set.
        identity: of the set.
        num_chunks: of its images.
        seed: of the posterior chains.
        device: where to compute.
        files: of the parts.
    """

    run: Storage
    samples_seen: int
    data: Storage
    identity: str
    num_chunks: int
    seed: int
    device: str
    files: PartFiles

    @classmethod
    def of(
        cls, run: Storage, model: LatentModel, images: ImageSet, seed: int, device: str, folder: Storage
    ) -> "ScoreJob":
        """The job, begun in its folder or continued there.

        Raises:
            ConfigError: the folder has parts of another job.
        """
        identity, files = images.manifest.identity(), PartFiles(folder, ".parquet")
        files.begin({
            "job": "scores",
            "run": str(run.url),
            "samples_seen": model.samples_seen,
            "data": str(images.storage.url),
            "identity": identity,
            "seed": seed,
        })  # fmt: skip
        return cls(run, model.samples_seen, images.storage, identity, images.num_chunks, seed, device, files)

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return -(-self.num_chunks // part_size(self.num_chunks))

    def done(self) -> set[int]:
        """The parts that are done."""
        return self.files.done()

    def open(self) -> Callable[[int], None]:
        """What does a part, with the model opened.

        Raises:
            ConfigError: the run has a newer checkpoint than the one that the job began with.
        """
        model = open_model(self.run).to(device_of(self.device))
        images = open_all_images(model, self.data, World.alone())
        if (model.samples_seen, images.manifest.identity()) != (self.samples_seen, self.identity):
            raise ConfigError("The run or the set has changed since the scores were begun; begin at another place.")
        reference, size = self.reference(), part_size(self.num_chunks)

        def score_part(part: int) -> None:
            chunks = range(part * size, min((part + 1) * size, self.num_chunks))
            with tempfile.TemporaryDirectory(prefix="ebmscale-scores-") as folder:
                own = replace(images, numbers=chunks)
                self.files.write(part, part_bytes(model, own, Path(folder), self.seed, reference))

        return score_part

    def keep_reference(self, reference: Tensor | None) -> None:
        """Writes the scores (M,) of held-out images for the workers; None where there are none."""
        self.files.storage.publish(REFERENCE_FILE, save({} if reference is None else {"scores": reference}))

    @property
    def has_reference(self) -> bool:
        """Whether the scores of held-out images are known already."""
        return self.files.storage.exists(REFERENCE_FILE)

    def reference(self) -> Tensor | None:
        """The scores (M,) of held-out images; None where there are none."""
        content = self.files.storage.read_bytes(REFERENCE_FILE)
        return parse_tensors(self.files.storage.url_of(REFERENCE_FILE), content).get("scores")

    def parts(self) -> Iterator[bytes]:
        """The files of the parts, in their order."""
        return (self.files.read(part) for part in range(self.num_parts))

    def remove(self) -> None:
        """Deletes the parts, after they were joined."""
        self.files.storage.delete(REFERENCE_FILE)
        self.files.remove()
