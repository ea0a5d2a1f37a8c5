"""Evaluation of a model: the metrics, the images on which each is measured, and the record of a measurement."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pydantic import ConfigDict

from ebmscale.errors import ConfigError
from ebmscale.evaluate.anomaly import Detection
from ebmscale.evaluate.baselines import MOST_TRAINING, Baselines
from ebmscale.evaluate.features import NAMES, Features
from ebmscale.evaluate.fidelity import Distances, Reconstruction
from ebmscale.evaluate.given import MeanDensity, latent_features
from ebmscale.evaluate.images import ImageSet, Progress, measured_split, open_images
from ebmscale.evaluate.latents import LatentDensity
from ebmscale.evaluate.likelihood import CONVENTION, MeanLikelihood
from ebmscale.evaluate.manifold import NEIGHBOURS
from ebmscale.evaluate.measure import Measure, Tensors
from ebmscale.evaluate.prior_fit import PriorFit
from ebmscale.evaluate.reference import find_reference, keep_reference
from ebmscale.evaluate.verdict import Verdict
from ebmscale.evaluate.verdicts import of_metric
from ebmscale.model.latent_model import LatentModel
from ebmscale.storage import Storage
from ebmscale.stored import Count, Number, Stored, read_document
from ebmscale.version import __version__
from ebmscale.world import World

METRICS = ("reconstruction", "prior", "frechet", "ceiling", "latents", "anomaly", "baselines", "likelihood")
WITH_FEATURES = ("frechet", "ceiling")
OF_ANOMALIES = ("anomaly", "baselines")
FOLDER = "evaluation"
DEFAULT_SAMPLES = {"prior": 256, "latents": 10_000, "frechet": 10_000, "ceiling": 10_000, "likelihood": 64}
"""Default number of images for metrics that would take too long on all images."""


@dataclass(frozen=True)
class MetricValues:
    """The values of one metric and how they were measured.

    Attributes:
        metric: one of `METRICS`.
        values: by name.
        protocol: split, counts, seeds, features, and everything else that is needed to repeat the measurement.
        samples_seen: of the checkpoint.
    """

    metric: str
    values: dict[str, float]
    protocol: dict[str, Any]
    samples_seen: int

    @property
    def name(self) -> str:
        """The name of its record in a run."""
        features = f"-{self.protocol['features']}" if "features" in self.protocol else ""
        stage = f"-stage{self.protocol['num_stages']}"
        return f"{self.metric}{features}-{self.protocol['split']}{stage}-{self.samples_seen:012d}"

    @property
    def file(self) -> str:
        """The file of its record in a run."""
        return f"{FOLDER}/{self.name}.json"

    def verdicts(self) -> list[Verdict]:
        """What the values mean."""
        return of_metric(self.metric, self.values)

    def save(self, run: Storage) -> None:
        """Writes the record into a run. It replaces an earlier record with the same file name."""
        run.publish(self.file, json.dumps({"ebmscale": __version__} | asdict(self), indent=1).encode())


class Protocol(Stored):
    """The protocol of a record. Metrics add fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    split: str
    num_stages: Count


class MeasuredRecord(Stored):
    """A record that `MetricValues.save` wrote."""

    metric: str
    values: dict[str, Number]
    protocol: Protocol
    samples_seen: Count


def read_records(run: Storage) -> list[MetricValues]:
    """The records of a run.

    Raises:
        DamagedError: a file is not a record.
    """
    found = [
        read_document(run, f"{FOLDER}/{name}", MeasuredRecord, non_finite=True)
        for name in run.list(FOLDER)
        if name.endswith(".json")
    ]
    return [MetricValues(one.metric, one.values, one.protocol.model_dump(), one.samples_seen) for one in found]


def evaluate(
    model: LatentModel,
    data: Storage,
    metrics: Sequence[str],
    *,
    features: Features | None = None,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    world: World | None = None,
) -> dict[str, float]:
    """The values of several metrics in one table; see `measure_metric`."""
    found = [measure_metric(model, data, metric, features, split, num_samples, seed, world) for metric in metrics]
    return {name: value for one in found for name, value in one.values.items()}


def measure_metric(
    model: LatentModel,
    data: Storage,
    metric: str,
    features: Features | None = None,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    world: World | None = None,
    places: Sequence[Storage] = (),
    progress: Progress = lambda done, total, unit: None,
) -> MetricValues:
    """Measures one metric (collective).

    The values are equal on all ranks. For another number of ranks they agree up to rounding.

    Args:
        model: the model. It is evaluated on its device, and for the likelihood on the CPU.
        data: a packed set. The configuration of the model defines its validation part and the class that was held out.
        metric: one of `METRICS`.
        features: of the Frechet distance.
        split: "test", "validation" or "train"; None: test, or validation where the set has no test part. Images of a
            class that was held out are used for `anomaly` only.
        num_samples: the largest number of images, and the number of samples for the Frechet distance. None means all
            images for most metrics, and of some as many as `DEFAULT_SAMPLES` says.
        seed: of the posterior chains and the samples.
        world: the ranks that divide the work among them.
        places: storages that cache the features of the images for the next Frechet distance.
        progress: told how far it is.

    Raises:
        ConfigError: an unknown metric or split, no features for a Frechet distance, no class held out for anomalies.
        DataError: the set is missing, empty, or of another shape.
        DivergenceError: the model returns values that are not finite.
    """
    found = prepare(model, data, metric, features, split, num_samples, seed, world, places, progress)
    return found.joined(found.images.world.gather_objects(found.measure.part(found.images)))


@dataclass(frozen=True)
class Prepared:
    """A metric that is about to be measured.

    Attributes:
        metric: one of `METRICS`.
        measure: measures parts, and joins them.
        images: on which it is measured.
        protocol: see `MetricValues`.
        samples_seen: of the checkpoint.
    """

    metric: str
    measure: Measure
    images: ImageSet
    protocol: dict[str, Any]
    samples_seen: int

    @property
    def name(self) -> str:
        """The name of its record in a run."""
        return MetricValues(self.metric, {}, self.protocol, self.samples_seen).name

    def joined(self, parts: Sequence[Tensors]) -> MetricValues:
        """The values, from all parts in their order (collective)."""
        values = self.measure.join(parts, self.images)
        chance = {"chance_auprc": values["prevalence"]} if self.metric in OF_ANOMALIES else {}
        return MetricValues(self.metric, values, self.protocol | chance, self.samples_seen)


def prepare(
    model: LatentModel,
    data: Storage,
    metric: str,
    features: Features | None = None,
    split: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    world: World | None = None,
    places: Sequence[Storage] = (),
    progress: Progress = lambda done, total, unit: None,
) -> Prepared:
    """Opens what `measure_metric` measures, with the same arguments (collective)."""
    ranks = world or World.alone()
    if model.is_given:
        features = latent_features(model)
    check_metrics([metric], features, model.is_given)
    if num_samples is None and not (metric == "likelihood" and model.is_given):
        num_samples = DEFAULT_SAMPLES.get(metric)
    split = split or measured_split(model, data)
    images = open_images(model, data, split, ranks, num_samples, metric in OF_ANOMALIES, progress)
    protocol = images.protocol() | {"num_stages": model.prior.num_stages, "num_workers": ranks.size}
    protocol |= {"device": model.device.type}
    protocol |= {"seed": seed, "run_seed": model.config.run.seed}
    measure: Measure
    if metric == "reconstruction":
        measure = Reconstruction(model, seed)
    elif metric == "prior":
        measure = PriorFit(model, seed)
    elif metric == "latents":
        measure = LatentDensity(model.to("cpu"), seed)
    elif metric == "likelihood" and model.is_given:
        measure = MeanDensity(model.to("cpu"), seed)
    elif metric == "likelihood":
        measure, protocol = MeanLikelihood(model.to("cpu"), seed), protocol | {"convention": CONVENTION}
    elif metric in OF_ANOMALIES:
        measure = _detectors(metric, model, data, images, seed)
        protocol |= {"positives": f"class {images.held_out.label}"}
    else:
        assert features is not None
        assert num_samples is not None
        if model.is_given:  # a reference depends on the draws of posteriors
            places = ()
        else:
            features.check(model.image_shape)
        known = find_reference(images, features, places)
        keep = partial(keep_reference, images=images, features=features, places=places)
        training = open_images(model, data, "train", ranks, num_samples) if metric == "ceiling" else None
        measure = Distances(model, features, num_samples, seed, known, keep, training)
        protocol |= {"num_generated": num_samples, "neighbours": NEIGHBOURS, "covariance": "float64"}
        protocol |= features.protocol()
    return Prepared(metric, measure, images, protocol, model.samples_seen)


def _detectors(metric: str, model: LatentModel, data: Storage, images: ImageSet, seed: int) -> Measure:
    """What detects anomalies: the model's scores, or baselines that are fitted to its training images."""
    if images.anomalous is None:
        raise ConfigError(
            "The run was trained on every class, so there are no anomalies to detect; train one with "
            "data.held_out.label=CLASS."
        )
    if metric == "anomaly":
        return Detection(model, seed)
    return Baselines(model, seed, open_images(model, data, "train", images.world, MOST_TRAINING))


def default_metrics(features: Features | str | None, is_given: bool = False) -> list[str]:
    """The metrics that are measured by default, of a model of given latents or another one.

    The Frechet distance of images is one of them if there are features.
    """
    if is_given:
        return ["likelihood", "prior", "frechet"]
    return ["reconstruction", "prior"] if features is None else ["reconstruction", "prior", "frechet"]


def check_names(metrics: Sequence[str]) -> None:
    """Refuses names that are not metrics with a ConfigError."""
    for metric in metrics:
        if metric not in METRICS:
            raise ConfigError(f"There is no metric {metric!r}; choose from {', '.join(METRICS)}.")


def check_metrics(metrics: Sequence[str], features: Features | str | None, is_given: bool = False) -> None:
    """Checks the names of metrics, for a model of given latents or another one.

    Raises:
        ConfigError: there is no such metric, or not of this model, or a Frechet distance has no features.
    """
    if is_given:
        if not {"reconstruction", "ceiling"}.isdisjoint(metrics):
            raise ConfigError("The run's samples are latents themselves, so there is nothing to reconstruct.")
        if "latents" in metrics:
            raise ConfigError("The run's samples are latents themselves; their mean density is the metric likelihood.")
        if isinstance(features, str):
            raise ConfigError(
                "The run's samples are latents, whose distance is measured on themselves; leave --features out."
            )
    check_names(metrics)
    if not set(WITH_FEATURES).isdisjoint(metrics) and features is None and not is_given:
        raise ConfigError(
            f"A Frechet distance needs features: give --features {NAMES[0]}, a folder that `ebmscale features train` "
            "wrote, or a file with the weights of the standard Inception network."
        )
