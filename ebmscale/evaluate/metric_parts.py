"""A metric in parts, which several workers share: a file of tensors for each part, in the run until all are there."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save

from ebmscale.errors import ConfigError
from ebmscale.evaluate.baselines import Baselines
from ebmscale.evaluate.features import open_features
from ebmscale.evaluate.fidelity import SAMPLES_AT_ONCE, Distances
from ebmscale.evaluate.measure import Tensors
from ebmscale.evaluate.metrics import FOLDER, MetricValues, Prepared, prepare
from ebmscale.model.load import open_model
from ebmscale.model.pieces import parse_tensors
from ebmscale.part_files import PartFiles
from ebmscale.storage import Storage
from ebmscale.world import World, device_of

MOST_PARTS = 64
"""So many files at most: of a Frechet distance each has the moments of all features."""


@dataclass(frozen=True)
class Question:
    """What is measured of a run, as a value that can be sent to another process; see `metrics.measure_metric`.

    Attributes:
        run: folder of the model.
        stage: after which the prior is measured; None: all.
        data: folder of the packed set.
        metric: one of `metrics.METRICS`.
        features: address of the features of a Frechet distance.
        split: the part of the set.
        num_samples: the largest number of images.
        seed: of everything random.
        device: where to compute.
    """

    run: Storage
    stage: int | None
    data: Storage
    metric: str
    features: str | None
    split: str
    num_samples: int | None
    seed: int
    device: str

    def prepare(self) -> Prepared:
        """The metric, opened here."""
        place = device_of(self.device)
        model = open_model(self.run).to(place)
        if self.stage is not None:
            model = model.at_stage(self.stage)
        network = open_features(self.features, place) if self.features is not None else None
        where = self.data, self.metric, network, self.split, self.num_samples, self.seed
        return prepare(model, *where, World.alone(), (self.data, self.run))


@dataclass(frozen=True)
class MetricJob:
    """One metric of one run, as a job in parts (see `runtime.part_job.PartedJob`).

    Attributes:
        question: what is measured.
        identity: of the set, and
        samples_seen: of the checkpoint, which workers check.
        num_parts: into which it is cut.
        files: of the parts.
    """

    question: Question
    identity: str
    samples_seen: int
    num_parts: int
    files: PartFiles

    @classmethod
    def of(cls, question: Question, prepared: Prepared) -> "MetricJob":
        """The job, begun in a folder of the run or continued there.

        Raises:
            ConfigError: the folder has parts of another job.
        """
        pieces = prepared.images.num_chunks
        if isinstance(prepared.measure, Distances):
            pieces = max(pieces, -(-prepared.measure.num_samples // SAMPLES_AT_ONCE))
        if isinstance(prepared.measure, Baselines):
            pieces = 1  # they are fitted anew for every part
        files = PartFiles(question.run.child(f"{FOLDER}/parts-{prepared.name}"), ".safetensors")
        identity = prepared.images.manifest.identity()
        job = cls(question, identity, prepared.samples_seen, max(min(pieces, MOST_PARTS), 1), files)
        about = {name: value for name, value in prepared.protocol.items() if name not in ("num_workers", "device")}
        about |= {"metric": question.metric, "identity": identity, "samples_seen": prepared.samples_seen}
        files.begin(about | {"knows_images": getattr(prepared.measure, "reference", None) is not None})
        return job

    def done(self) -> set[int]:
        """The parts that are done."""
        return self.files.done()

    def open(self) -> Callable[[int], None]:
        """What does a part, with the model opened.

        Raises:
            ConfigError: the run has a newer checkpoint than the one that the job began with.
        """
        prepared = self.question.prepare()
        if (prepared.samples_seen, prepared.images.manifest.identity()) != (self.samples_seen, self.identity):
            raise ConfigError("The run or the set has changed since the measurement was begun; begin it again.")

        def measure_part(part: int) -> None:
            images = replace(prepared.images, world=World(part, self.num_parts, torch.device("cpu")))
            found = prepared.measure.part(images)
            self.files.write(part, save({name: value.contiguous() for name, value in found.items()}))

        return measure_part

    def joined(self, prepared: Prepared, num_workers: int) -> MetricValues:
        """The values, from the files of all parts."""
        found = prepared.joined([self._read(part) for part in range(self.num_parts)])
        return replace(found, protocol=found.protocol | {"num_workers": num_workers})

    def _read(self, part: int) -> Tensors:
        return parse_tensors(self.files.storage.url_of(self.files.name(part)), self.files.read(part))
