"""Which keys of a space matter: their importances, from the trials that can be compared."""

import importlib.util
import math
from collections.abc import Sequence

from ebmscale.search.objectives import EVALUATED, score
from ebmscale.search.propose import INSTALL, as_parameters
from ebmscale.search.space import Space
from ebmscale.search.trial import Record

LEAST_TRIALS = 6
SEED = 0


def comparable(space: Space, records: Sequence[Record]) -> tuple[int | None, list[tuple[Record, float]]]:
    """Trials with values of the first objective that can be compared, and the samples at which.

    Where a scheduler stops trials, that is the place that all have reached; None is the end of finished trials.
    """
    first = space.objectives[0]
    known = [record for record in records if record.status in ("finished", "stopped") and record.reports]
    place = min((record.samples_seen for record in known), default=0)
    if first.reach is not None or first.metric.startswith(EVALUATED) or all(r.status == "finished" for r in known):
        known, at = [record for record in known if record.status == "finished"], None
    else:
        at = place
    values = [(record, score(first, record, until=math.inf if at is None else at)) for record in known]
    return at, [(record, value) for record, value in values if value is not None]


def importance(space: Space, records: Sequence[Record]) -> dict[str, float]:
    """The share of the first objective's variance that each key explains: Optuna's functional ANOVA.

    Of trials that can be compared; none where these are too few, where values changed within trials, or without
    Optuna. Keys that only some of these trials have are left out.
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


def importance_note(space: Space, records: Sequence[Record]) -> str:
    """What the page says of them."""
    at, known = comparable(space, records)
    if space.scheduler == "pbt":
        return "Values changed within trials, so no importances are given."
    if len(known) < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} trials that can be compared; there are {len(known)}."
    if not _is_there():
        return f"Importances need Optuna: {INSTALL}."
    where = "at their end" if at is None else f"at {at:,} samples, which all have reached"
    return (
        f"Importances are shares of the variance over {len(known)} trials {where} (functional ANOVA). With few trials "
        "they are a hint and no more. Keys that only some of these trials have are left out. Dotted lines pass axes of "
        "keys that a trial does not have."
    )
