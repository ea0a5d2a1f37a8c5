"""The state of a run for Prometheus: rank 0 sets gauges on Ray's metrics endpoint.

Ray prefixes each name with `ray_`: Prometheus reads `ebmscale_samples_seen` as `ray_ebmscale_samples_seen`.
"""

from typing import Any

GAUGES = {
    "ebmscale_samples_seen": "Samples trained on",
    "ebmscale_samples_per_s": "Samples trained on per second, over the last interval of metrics",
    "ebmscale_num_workers": "Workers that train now",
    "ebmscale_stage": "Stage of the ratio sequence",
    "ebmscale_ratio_loss": "Loss of the ratio on held-out latents (2 log 2 is chance)",
    "ebmscale_auc": "Area under the curve of the ratio on held-out latents",
    "ebmscale_kl_bound": "Lower bound in nats on the KL divergence that remains for this stage",
    "ebmscale_held_out_mse": "Squared error of reconstructed held-out images",
    "ebmscale_data_wait_fraction": "Share of the time spent waiting for data",
    "ebmscale_checkpoint_stall_fraction": "Share of the time spent waiting for checkpoints",
}
_OF_EVIDENCE = {"ebmscale_ratio_loss": "loss", "ebmscale_auc": "auc", "ebmscale_kl_bound": "kl_bound"}


class Gauges:
    """The gauges of one run, set in a process that Ray started.

    Args:
        run_name: the value of the tag `run`.
    """

    def __init__(self, run_name: str):
        from ray.util.metrics import Gauge  # noqa: PLC0415

        self._gauges = {name: Gauge(name, about, tag_keys=("run",)) for name, about in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_name})
        self._samples_seen: int | None = None

    def begin(self, samples_seen: int, num_workers: int) -> None:
        """Sets the gauges when the run is open."""
        self._samples_seen = samples_seen
        self._gauges["ebmscale_samples_seen"].set(samples_seen)
        self._gauges["ebmscale_num_workers"].set(num_workers)

    def event(self, event: dict[str, Any]) -> None:
        """Sets the gauges after a measurement of evidence."""
        self._gauges["ebmscale_stage"].set(event["stage"])
        if "held_out_mse" in event:
            self._gauges["ebmscale_held_out_mse"].set(event["held_out_mse"])
        for name, key in _OF_EVIDENCE.items():
            if "evidence" in event:
                self._gauges[name].set(event["evidence"][key])

    def metrics(self, samples_seen: int, metrics: dict[str, Any]) -> None:
        """Sets the gauges after an interval of metrics."""
        times = metrics["time"]
        total = max(times["total_s"], 1e-9)
        self._gauges["ebmscale_samples_seen"].set(samples_seen)
        self._gauges["ebmscale_stage"].set(metrics["stage"])
        self._gauges["ebmscale_data_wait_fraction"].set(times.get("data_s", 0.0) / total)
        self._gauges["ebmscale_checkpoint_stall_fraction"].set(times.get("checkpoint_s", 0.0) / total)
        if self._samples_seen is not None:
            self._gauges["ebmscale_samples_per_s"].set((samples_seen - self._samples_seen) / total)
        self._samples_seen = samples_seen
