"""One worker of a real run, for the tests of the plan: prints, as JSON, its peak memory or what its collectives moved.

Use: python plan_worker.py CONFIG memory|traffic; under torchrun for several workers.
"""

import collections
import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

UPDATES = 3
OBJECTS = ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list")
COUNTED = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "reduce", "reduce_scatter")


def measure_memory(config: Any, world: Any) -> dict[str, int]:
    """Bytes above a run of next to nothing: at the peak of set-up, updates and evidence, and with a checkpoint."""
    from ebmscale.config import RunConfig
    from ebmscale.forecast.process_memory import peak_bytes
    from ebmscale.forecast.timing import process_bytes
    from ebmscale.stop import StopSignal
    from ebmscale.training.measurement import take_evidence
    from ebmscale.training.opening import open_run
    from ebmscale.training.update import train_batch

    assert isinstance(config, RunConfig)
    base = process_bytes(config, (1, 8, 8), with_deepspeed=config.engine == "deepspeed")
    run = open_run(config, world, StopSignal())
    batches = run.batches()
    for _ in range(UPDATES):
        batch = next(batches)
        report = train_batch(run, batch)
        run.finish(batch)
        run.poll.pace(float(run.world.sum(torch.tensor(report.chain_step_s))) / run.world.size)
    take_evidence(run)
    updates = peak_bytes() - base
    run.save()
    run.saver.finish()
    run.close()
    return {"updates": updates, "checkpoint": peak_bytes() - base}


def measure_traffic(config: Any, world: Any) -> dict[str, float]:
    """What an update hands to the collectives: bytes that a ring would send, and how many there are."""
    counter = _count_collectives()
    from ebmscale.stop import StopSignal
    from ebmscale.training.opening import open_run
    from ebmscale.training.update import train_batch

    run = open_run(config, world, StopSignal())
    batches = run.batches()
    for index in range(2 * UPDATES):
        if index == UPDATES:
            counter.clear()
        batch = next(batches)
        report = train_batch(run, batch)
        run.finish(batch)
        run.poll.pace(float(run.world.sum(torch.tensor(report.chain_step_s))) / run.world.size)
    run.close()
    return {name: value / UPDATES for name, value in counter.items()}


def _count_collectives() -> collections.Counter[str]:
    """Replaces torch's collectives by ones that count; before DeepSpeed is imported, which keeps references."""
    counter: collections.Counter[str] = collections.Counter()

    def counting(name: str, real: Any) -> Any:
        def collective(*args: Any, **kwargs: Any) -> Any:
            ring = (dist.get_world_size() - 1) / dist.get_world_size()
            largest = max(_num_bytes(value) for value in (*args, *kwargs.values()))
            counter["bytes"] += largest * ring * (2 if name == "all_reduce" else 1)
            counter["collectives"] += 1
            return real(*args, **kwargs)

        return collective

    def counting_objects(real: Any) -> Any:
        def collective(*args: Any, **kwargs: Any) -> Any:
            counter["objects"] += 1
            return real(*args, **kwargs)

        return collective

    for name in COUNTED:
        setattr(dist, name, counting(name, getattr(dist, name)))
    for name in OBJECTS:
        setattr(dist, name, counting_objects(getattr(dist, name)))
    return counter


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    from ebmscale.config import load_config
    from ebmscale.world import World

    config, world = load_config(sys.argv[1]), World.from_environment("cpu")
    found = (measure_memory if sys.argv[2] == "memory" else measure_traffic)(config, world)
    if world.is_first:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
