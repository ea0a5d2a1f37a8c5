"""Checks, before any worker starts, that every node that may run one has access to storage, data and resources."""

import uuid
from typing import Any, NamedTuple

from ebmscale.config import RunConfig
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import class_index
from ebmscale.errors import ConfigError, DataError, EbmscaleError, StorageError
from ebmscale.machine import num_cpus
from ebmscale.storage import Storage, open_storage
from ebmscale.storage_probe import probe
from ebmscale.terminal import Terminal
from ebmscale.version import __version__

CHECK_S = 120.0
_ERRORS: dict[str, type[EbmscaleError]] = {kind.__name__: kind for kind in (ConfigError, DataError, StorageError)}


class NodeCheck(NamedTuple):
    """The result of one node: the name of an error's class and its sentence; both are empty if all checks pass."""

    node: str
    error: str
    sentence: str


def preflight(ray: Any, config: RunConfig, console: Terminal) -> None:
    """Checks the resources; checks storage and data from every node that may run a worker.

    Raises:
        ConfigError: a node runs another version of ebmscale.
        DataError: a node cannot read the shards.
        StorageError: a node cannot write to the run's storage, or the address means another folder there.
    """
    storage, name = storage_of_run(config), f".ebmscale-preflight-{uuid.uuid4().hex}"
    probe(storage)
    storage.publish(name, name.encode())
    try:
        checks = _ask_nodes(ray, config, name)
    finally:
        storage.delete(name)
    for check in checks:
        if check.error:
            raise _ERRORS.get(check.error, EbmscaleError)(f"On the node {check.node}: {check.sentence}")
    lack = lacking(config, ray.cluster_resources())
    if lack is not None:
        console.print(f"{lack} waiting up to {config.ray.wait_s:.0f} s for them")


def lacking(config: RunConfig, have: dict[str, float]) -> str | None:
    """Returns a sentence on what the cluster lacks for the run's least number of workers; None if it lacks nothing."""
    block = config.ray
    needs = {"CPU": block.cpus_per_worker, "GPU": float(block.gpus_per_worker or 0)}
    for kind, each in needs.items():
        if each * block.least_workers > have.get(kind, 0.0):
            return (
                f"{block.least_workers} worker(s) of {each:g} {kind}s need {each * block.least_workers:g}, and the "
                f"cluster has {have.get(kind, 0.0):g}: lower ray.num_workers or ray.{kind.lower()}s_per_worker, or "
                "add nodes;"
            )
    return None


def _ask_nodes(ray: Any, config: RunConfig, name: str) -> list[NodeCheck]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    task = ray.remote(num_cpus=0, max_retries=1)(check_node)
    asked = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0.0) >= config.ray.cpus_per_worker:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            place = node["NodeManagerAddress"]
            ref = task.options(scheduling_strategy=strategy).remote(config, name, place, __version__)
            asked.append((place, ref))
    checks = []
    for place, ref in asked:
        try:
            checks.append(ray.get(ref, timeout=CHECK_S))
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise ConfigError(
                f"The node {place} cannot set the job up: {' '.join(str(error).split())[:300]}."
            ) from error
        except ray.exceptions.GetTimeoutError:
            raise StorageError(
                f"The node {place} did not finish its checks in {CHECK_S:.0f} s; check that it works."
            ) from None
        except ray.exceptions.RayTaskError as error:
            text = " ".join(str(error.cause).split())
            raise ConfigError(
                f"The node {place} cannot run ebmscale ({type(error.cause).__name__}: {text}); install it there, or "
                "send the code with `ebmscale submit`."
            ) from error
        except ray.exceptions.RayError:  # the node is gone, so Ray places no worker there
            continue
    return checks


def check_node(config: RunConfig, name: str, place: str, version: str) -> NodeCheck:
    """Runs the checks on this node; `name` is a file that the driver has written to the run's storage."""
    try:
        if __version__ != version:
            raise ConfigError(f"ebmscale {__version__} is installed, but the driver runs {version}; install {version}.")
        if config.num_threads > num_cpus():
            raise ConfigError(
                f"num_threads is {config.num_threads:,}, and this machine has {num_cpus()} processors; lower it."
            )
        storage = storage_of_run(config)
        probe(storage)
        if not storage.exists(name):
            raise StorageError(
                f"{storage.url} is a folder of that machine alone, and workers on several machines need one place; "
                "set storage.url to a shared folder or to an address such as s3://BUCKET/runs."
            )
        _read_some(open_storage(config.data), config)
    except EbmscaleError as error:
        kind = next((k for k in type(error).__mro__ if k.__name__ in _ERRORS), EbmscaleError)
        return NodeCheck(place, kind.__name__, str(error))
    return NodeCheck(place, "", "")


def _read_some(data: Storage, config: RunConfig) -> None:
    """Reads the beginning of the first and the last shard, if the data set is packed already."""
    if config.data.format is not None and not data.exists("manifest.json"):
        return  # the run packs it when it starts
    manifest = Manifest.load(data)
    class_index(manifest, config.data.held_out)
    for shard in (manifest.shards[0], manifest.shards[-1]):
        try:
            found = data.read_range(shard.file, 0, 512)
        except StorageError as error:
            raise DataError(str(error)) from error
        if not found:
            raise DataError(f"{data.url_of(shard.file)} is empty; pack the data set again.")


def storage_of_run(config: RunConfig) -> Storage:
    """The storage of the run, as from `model.run_folder.run_storage`, but without an import of torch."""
    return open_storage(config.storage).child(config.run.name)
