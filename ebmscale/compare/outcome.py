"""The measurements and the cost of a row's run, from the files that `train` and `evaluate` wrote into it."""

from ebmscale.compare.rows import EvaluationBlock
from ebmscale.config import RunConfig
from ebmscale.errors import DamagedError, StorageError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.metrics import FOLDER, read_records
from ebmscale.model.run_documents import MetricsLine
from ebmscale.storage import Storage
from ebmscale.training.metrics import METRICS_FILE, read_lines


def measured_values(run: Storage, evaluation: EvaluationBlock, features: Features | None) -> dict[str, float]:
    """The values that the evaluation found; a run may hold records of other splits, features and checkpoints too."""
    records = read_records(run)
    expected = features.protocol() if features is not None else {}
    values: dict[str, float] = {}
    for metric in evaluation.metrics:
        of_metric = [
            record
            for record in records
            if record.metric == metric
            and record.protocol["split"] == evaluation.split
            and (metric != "frechet" or expected.items() <= record.protocol.items())
        ]
        if not of_metric:
            raise StorageError(
                f"{run.url_of(FOLDER)} does not list the record of {metric} that `evaluate` wrote; run the "
                "same command again."
            )
        values |= max(of_metric, key=lambda record: (record.samples_seen, record.protocol["num_stages"])).values
    return values


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
