"""Importances of the keys of a space, computed from the trials that can be compared."""

import importlib.util
import math
from collections.abc import Sequence

from ebmscale.search.objectives import EVALUATED, objective_value
from ebmscale.search.propose import INSTALL, as_parameters
from ebmscale.search.space import Space
from ebmscale.search.trial import TrialRecord

LEAST_TRIALS = 6
SEED = 0
LARGEST = 1e100  # a float holds the square of a smaller value


def comparable(space: Space, records: Sequence[TrialRecord]) -> tuple[int | None, list[tuple[TrialRecord, float]]]:
    """Returns the place of comparison in samples, and the trials there with their values of the first objective.

    If a scheduler has stopped trials, the place is the last that all have reached. None means the end of the finished
    trials.
    """
    first = space.objectives[0]
    known = [record for record in records if record.status in ("finished", "stopped") and record.reports]
    place = min((record.samples_seen for record in known), default=0)
    if first.reach is not None or first.metric.startswith(EVALUATED) or all(r.status == "finished" for r in known):
        known, at = [record for record in known if record.status == "finished"], None
    else:
        at = place
    values = [(record, objective_value(first, record, until=math.inf if at is None else at)) for record in known]
    return at, [(record, value) for record, value in values if value is not None and abs(value) < LARGEST]


def importance(space: Space, records: Sequence[TrialRecord]) -> dict[str, float]:
    """The share of the first objective's variance that each key explains, by Optuna's functional ANOVA.

    It uses the trials that can be compared. The result is empty if there are too few, if values changed within trials,
    or if Optuna is not installed. Keys that only some of these trials have are left out.
    """
    _, known = comparable(space, records)
    values = [value for _, value in known]
    if not _is_there() or len(known) < LEAST_TRIALS or space.scheduler == "pbt" or len(set(values)) < 2:
        return {}
    import optuna  # noqa: PLC0415 (an extra)

    study = optuna.create_study()
    for record, value in known:
        params, distributions = as_parameters(space, record)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _is_there() -> bool:
    return importlib.util.find_spec("optuna") is not None


def importance_note(space: Space, records: Sequence[TrialRecord]) -> str:
    """The page's text on the importances."""
    at, known = comparable(space, records)
    if space.scheduler == "pbt":
        return "Values changed within trials, so no importances are given."
    if len(known) < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} trials that can be compared; there are {len(known)}."
    if not _is_there():
        return f"Importances need Optuna: {INSTALL}."
    where = "at their end" if at is None else f"at {at:,} samples, which all of them have reached"
    return (
        f"Importances are shares of the variance over {len(known)} trials {where} (functional ANOVA). With few trials "
        "they are only a hint. Keys that only some of these trials have are left out. A line is dotted across the axes "
        "of keys that the trial does not have."
    )
