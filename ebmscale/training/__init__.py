"""Training: the loop, the parts of a run, the engines, the checkpoints, the lease, the guard and the metrics."""
