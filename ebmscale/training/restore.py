"""Brings a run to the state of a checkpoint: at its start, and where it goes back after bad updates."""

from dataclasses import asdict

from ebmscale.errors import DivergenceError
from ebmscale.kernels.forms import is_for
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.pieces import shapes_of
from ebmscale.training.loaded import LoadedCheckpoint, read_checkpoint
from ebmscale.training.run import Run


def restore(run: Run, only_good: bool = False) -> SavedCheckpoint | None:
    """Restores the newest valid checkpoint. Any world and any engine may have written it (collective).

    Of the checkpoint of another run with which this one starts, the networks and the buffer of posteriors are taken.

    Args:
        run: to be restored.
        only_good: whether to skip checkpoints that were saved right after a skipped update, and that of another run.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        StorageError: the storage cannot be read.
        ConfigError: the checkpoint is of another network.
    """
    store, ratio_shapes = run.saver.store, shapes_of(run.stages.frozen.network.state_dict())
    for name in run.world.broadcast(store.candidates() if run.world.is_first else None):
        if only_good and name == run.borrowed:
            continue
        parts = run.first_parts if name == run.borrowed else run.parts
        loaded = read_checkpoint(store, name, parts, ratio_shapes, run.world)
        if loaded is None or (only_good and not loaded.saved.manifest.good):
            continue
        _take(run, loaded)
        return loaded.saved
    return None


def _take(run: Run, loaded: LoadedCheckpoint) -> None:
    saved, state = loaded.saved, loaded.state
    is_borrowed = saved.name == run.borrowed
    if not is_borrowed:
        run.stages.load_values(state.stages.model_dump())
    parts = run.first_parts if is_borrowed else run.parts
    for stem, tensors in loaded.tensors.items():
        parts[stem].restore(tensors)
    if not is_borrowed:
        run.stages.take_frozen(loaded.ratios)
    run.guard.load_values(asdict(state.guard))
    if len(state.meters) == run.world.size:
        run.meter.load_values(state.meters[run.world.rank])
    run.timer.load_values(loaded.clock.model_dump())
    run.measured, run.done_at = dict(state.measured), state.done_at.model_dump()
    if is_borrowed:  # the evidence there was not yet that of a ratio
        run.done_at["evidence"] = min(run.done_at["evidence"], saved.samples_seen - run.config.train.batch_size)
    run.residuals = state.residuals
    run.noise_level.restore(state.mean_square)
    run.samples_seen = saved.samples_seen
    run.saver.last_saved = saved.samples_seen
    form = state.form
    if run.config.posterior.kernel == "auto" and form is not None and is_for(form, run.world.device):
        run.sampling.use(form)  # the form with which the run began, even if another is faster now
    run.sampling.refresh()


def roll_back(run: Run, reason: str) -> int:
    """Returns to the weights of the last good checkpoint, with lower rates, and saves (collective).

    `samples_seen` keeps its value. So no sample is trained on twice, and metrics have one line for each position.

    Args:
        run: that trains.
        reason: what happened, for the message.

    Returns:
        `samples_seen` of the checkpoint.

    Raises:
        DivergenceError: the run was rolled back too often, or there is no good checkpoint.
    """
    run.saver.finish()
    run.guard.check_run_rollbacks(reason)
    now, done_at, guard, meter = run.samples_seen, run.done_at, run.guard.state, run.meter.values()
    saved = restore(run, only_good=True)
    if saved is None:
        raise DivergenceError(
            f"Training diverged: {reason}, and there is no checkpoint to go back to; lower train.generator.rate, "
            "train.ratio.rate or the chain's step_size."
        )
    before = run.guard.state
    run.guard.state = guard
    run.guard.roll_back(before, now - saved.samples_seen)
    run.stages.shift(now - saved.samples_seen)
    run.samples_seen, run.done_at = now, done_at
    run.meter.load_values(meter)
    run.save()
    return saved.samples_seen
