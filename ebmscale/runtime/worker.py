"""The body of one worker: the same on a laptop, under torchrun and on a cluster."""

from rich.console import Console

from ebmscale.config import RunConfig
from ebmscale.training.guard import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World


def run_worker(config: RunConfig, console: Console) -> tuple[str, World]:
    """Joins the world that the environment describes, and trains or resumes the run.

    Returns:
        The run's address, and this worker's place.
    """
    world = World.from_environment(config.device)
    with StopSignal().listening() as stop:
        return train(config, View(console), world, stop), world
