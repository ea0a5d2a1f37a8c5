"""Training: the tasks, the loop, the engines, the stages, the checkpoints and the metrics of a run."""
