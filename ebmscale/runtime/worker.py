"""The body of one worker: the same on a laptop, under torchrun and on a cluster."""

import logging
import os

from rich.console import Console

from ebmscale.config import RunConfig
from ebmscale.train.engine import operators_compiled
from ebmscale.train.guard import StopSignal
from ebmscale.train.loop import train
from ebmscale.train.run import engine_settings
from ebmscale.train.view import View
from ebmscale.world import World

log = logging.getLogger(__name__)


def run_worker(config: RunConfig, console: Console) -> tuple[str, World]:
    """Joins the world that the environment describes, and trains or resumes the run.

    Returns:
        The run's address, and this worker's place.
    """
    world = World.from_environment(config.device)
    if world.is_first and engine_settings(config, world).kind == "deepspeed" and not operators_compiled():
        console.print("DeepSpeed compiles an operator at its first use on this machine: about a minute.")
    with StopSignal().listening() as stop:
        return train(config, View(console), world, stop), world


def first_rank() -> bool:
    """Whether this process is the one that prints, before any world exists."""
    return os.environ.get("RANK", "0") == "0"
