"""Before any worker starts: can every node that may run one do what the run needs? One sentence where it cannot."""

import uuid
from typing import Any, NamedTuple

import ebmscale
from ebmscale.config import RunConfig
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import class_index
from ebmscale.errors import ConfigError, DataError, EbmscaleError, StorageError
from ebmscale.machine import num_cpus
from ebmscale.storage import Storage, open_storage
from ebmscale.terminal import Terminal

CHECK_S = 120.0
_ERRORS: dict[str, type[EbmscaleError]] = {kind.__name__: kind for kind in (ConfigError, DataError, StorageError)}


class Finding(NamedTuple):
    """What one node found: the name of an error's class and its sentence, both empty where all is well."""

    node: str
    error: str
    sentence: str


def preflight(ray: Any, config: RunConfig, console: Terminal) -> None:
    """Checks resources, and from every node that may run a worker the storage and the data.

    Raises:
        ConfigError: a node runs another ebmscale.
        DataError: the shards cannot be read everywhere.
        StorageError: the run's storage cannot be written everywhere, or is not the same place everywhere.
    """
    storage, name = storage_of_run(config), f".ebmscale-preflight-{uuid.uuid4().hex}"
    storage.probe()
    storage.publish(name, name.encode())
    try:
        findings = _ask_nodes(ray, config, name)
    finally:
        storage.delete(name)
    for finding in findings:
        if finding.error:
            raise _ERRORS.get(finding.error, EbmscaleError)(f"On the node {finding.node}: {finding.sentence}")
    lack = lacking(config, ray.cluster_resources())
    if lack is not None:
        console.print(f"{lack} waiting up to {config.ray.wait_s:.0f} s for more")


def lacking(config: RunConfig, have: dict[str, float]) -> str | None:
    """What a cluster with these resources lacks for the fewest workers of a run, in a sentence; None if nothing."""
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


def _ask_nodes(ray: Any, config: RunConfig, name: str) -> list[Finding]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    task = ray.remote(num_cpus=0, max_retries=1)(check_node)
    asked = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0.0) >= config.ray.cpus_per_worker:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            place = node["NodeManagerAddress"]
            ref = task.options(scheduling_strategy=strategy).remote(config, name, place, ebmscale.__version__)
            asked.append((place, ref))
    findings = []
    for place, ref in asked:
        try:
            findings.append(ray.get(ref, timeout=CHECK_S))
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise ConfigError(
                f"The node {place} cannot set the job up: {' '.join(str(error).split())[:300]}."
            ) from error
        except ray.exceptions.GetTimeoutError:
            raise StorageError(f"The node {place} did not finish its checks in {CHECK_S:.0f} s; look at it.") from None
        except ray.exceptions.RayTaskError as error:
            text = " ".join(str(error.cause).split())
            raise ConfigError(
                f"The node {place} cannot run ebmscale ({type(error.cause).__name__}: {text}); install it there, or "
                "send the code with `ebmscale submit`."
            ) from error
        except ray.exceptions.RayError:  # the node went away since, and workers will not be placed there
            continue
    return findings


def check_node(config: RunConfig, name: str, place: str, version: str) -> Finding:
    """What this node has to say; `name` is a file that the driver has put into the run's storage."""
    try:
        if ebmscale.__version__ != version:
            raise ConfigError(f"ebmscale {ebmscale.__version__} is installed, but this is {version}; install that.")
        if config.num_threads > num_cpus():
            raise ConfigError(
                f"num_threads is {config.num_threads:,}, and this machine has {num_cpus()} processors; lower it."
            )
        storage = storage_of_run(config)
        storage.probe()
        if not storage.exists(name):
            raise StorageError(
                f"{storage.url} is a folder of that machine alone, and workers on several machines need one place; "
                "choose a shared folder or an address such as s3://BUCKET/runs for storage.url."
            )
        _read_some(open_storage(config.data), config)
    except EbmscaleError as error:
        kind = next((k for k in type(error).__mro__ if k.__name__ in _ERRORS), EbmscaleError)
        return Finding(place, kind.__name__, str(error))
    return Finding(place, "", "")


def _read_some(data: Storage, config: RunConfig) -> None:
    """Reads a little of the first and the last shard, where there are shards already."""
    if config.data.format is not None and not data.exists("manifest.json"):
        return  # packed when the run begins
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
    """Where the run lives; as `training.run.run_storage`, without the weight of torch."""
    return open_storage(config.storage).child(config.run.name)
