"""Keys of earlier versions: dropped if their value had no effect, else refused with a sentence.

Every run's `config.yaml` names all keys of its version, so most removed keys have their default there.
"""

from typing import Any

from ebmscale.errors import ConfigError

REMOVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "model.ratio_components": ((0,), "the ratio network has no mixture head any more; use prior.base: moments"),
    "model.ratio_rank": ((8, None), "the ratio network has no mixture head any more; use prior.base: moments"),
    "posterior.first_steps": (
        (None,),
        "the states of chains are no longer saved; use posterior.start: encoder or base",
    ),
    "posterior.memory_bytes": (
        (2**28,),
        "the states of chains are no longer saved; use posterior.start: encoder or base",
    ),
    "posterior.plateau": ((0, 0.0), "the number of steps is not adapted any more; set posterior.num_steps"),
    "stages.loss": (("nce", "n2ce"), ""),
    "stages.penalty": ((0, 0.0), "ratios are not penalised any more"),
}
"""For each key the values without effect, and what to do about any other value."""

RENAMED = {
    "model.form": "model.generator.form",
    "model.generator_width": "model.generator.width",
    "model.encoder_width": "model.encoder.width",
    "model.ratio_hidden": "model.ratio.hidden",
    "model.ratio_activation": "model.ratio.activation",
    "model.ratio_squares": "model.ratio.squares",
}
"""Keys of earlier versions that have another name now."""


def new_name(key: str) -> str:
    """The present name of a dotted key."""
    return RENAMED.get(key, key)


def with_new_names(value: Any) -> Any:
    """A mapping by dotted keys, and the mappings in it, with the present names of the keys."""
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(key, key): with_new_names(inner) for key, inner in value.items()}


def rename(tree: dict[str, Any], source: str) -> None:
    """Moves values of renamed keys of a configuration's tree to their present names.

    Raises:
        ConfigError: a key has a value under both names.
    """
    for old, new in RENAMED.items():
        block, _, name = old.partition(".")
        keys = tree.get(block)
        if not isinstance(keys, dict) or name not in keys:
            continue
        inner, last = new.split(".")[1:]
        held = keys.get(inner) or {}
        if not isinstance(held, dict):
            continue  # the schema refuses it
        if last in held and held[last] != keys[name]:
            raise ConfigError(f"{source}: {old} is called {new} now, and both have a value; leave {old} out.")
        tree[block] = {key: value for key, value in keys.items() if key != name} | {inner: held | {last: keys[name]}}


def drop_removed(tree: dict[str, Any], source: str) -> None:
    """Takes removed keys out of a configuration's tree.

    Raises:
        ConfigError: the value of one of them had an effect.
    """
    posterior = tree.get("posterior")
    if isinstance(posterior, dict) and posterior.get("start") == "memory":
        raise ConfigError(
            f"{source}: posterior.start: memory was removed: the states of chains are no longer saved; use encoder or "
            "base, or continue the run with the version that began it."
        )
    for key, (harmless, advice) in REMOVED.items():
        block, _, name = key.partition(".")
        keys = tree.get(block)
        if not isinstance(keys, dict) or name not in keys:
            continue
        if keys[name] not in harmless:
            raise ConfigError(
                f"{source}: {key} was removed: {advice}, or continue the run with the version that began it."
            )
        tree[block] = {other: value for other, value in keys.items() if other != name}
