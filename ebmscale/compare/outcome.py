"""The measurements and the cost of a row's run, from the files that `train` and `evaluate` wrote into it."""

from collections.abc import Sequence

from ebmscale.compare.rows import EvaluationBlock
from ebmscale.config import RunConfig
from ebmscale.errors import DamagedError, StorageError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.fidelity import CEILING
from ebmscale.evaluate.metrics import FOLDER, WITH_FEATURES, MetricValues, read_records
from ebmscale.model.run_documents import MetricsLine
from ebmscale.storage import Storage
from ebmscale.training.metrics import METRICS_FILE, read_lines


def measured_values(
    run: Storage, evaluation: EvaluationBlock, networks: Sequence[Features], stage: int | None = None
) -> dict[str, float]:
    """The values that the evaluation found; a run may hold records of other splits, features and checkpoints too.

    Of the ceiling only the distances are kept, and of all features but the first too.

    Args:
        run: the run.
        evaluation: what was measured.
        networks: the features of the distances.
        stage: of the prior; None: the last one.
    """
    records = [one for one in read_records(run) if stage is None or one.protocol["num_stages"] == stage]
    values: dict[str, float] = {}
    for metric in evaluation.metrics:
        for index, network in enumerate(networks if metric in WITH_FEATURES and networks else [None]):
            found = _record(records, run, metric, str(evaluation.split), network).values
            names = () if network is None else (network.name, network.kernel_name, f"{network.kernel_name}_error")
            if metric == "ceiling":
                found = {name: found[name] for one in names if (name := f"{CEILING}_{one}") in found}
            elif index:
                found = {name: found[name] for name in names}
            values |= found
    return values


def _record(
    records: Sequence[MetricValues], run: Storage, metric: str, split: str, network: Features | None
) -> MetricValues:
    """The newest record of a metric."""
    expected = {"split": split} | (network.protocol() if network is not None else {})
    found = [one for one in records if one.metric == metric and expected.items() <= one.protocol.items()]
    if not found:
        raise StorageError(
            f"{run.url_of(FOLDER)} does not list the record of {metric} that `evaluate` wrote; run the same command "
            "again."
        )
    return max(found, key=lambda record: (record.samples_seen, record.protocol["num_stages"]))


def cpu_seconds_at_stages(run: Storage, config: RunConfig) -> list[float]:
    """Processor seconds of the training until p_0, p_1, ... were there: the base, then every frozen stage.

    Empty where the ratios of the prior are trained at once.
    """
    if config.num_live:
        return []
    found, cpu_s = list[float](), 0.0
    for line in read_lines(run, METRICS_FILE, MetricsLine):
        cpu_s += line["time"].get("cpu_s", 0.0)
        if not found and line["samples_seen"] >= config.stages.start_samples:
            found.append(cpu_s)
        while found and len(found) <= line.get("num_frozen", 0):
            found.append(cpu_s)
    return found


def cost(run: Storage, config: RunConfig) -> dict[str, float]:
    """The cost of the training: seconds of processor time, samples, and the number of stages."""
    lines = read_lines(run, METRICS_FILE, MetricsLine)
    if not lines:
        raise DamagedError(f"{run.url_of(METRICS_FILE)} holds no metrics of the run; delete the run to train it again.")
    cpu_s = sum(line["time"].get("cpu_s", 0.0) for line in lines)
    return {
        "stages": lines[-1].get("num_frozen", 0) or config.num_live,
        "samples": lines[-1]["samples_seen"],
        "cpu_s": cpu_s,
    }
