"""The body of one worker: the same on a laptop, under torchrun and on a cluster."""

from rich.console import Console

from ebmscale.config import RunConfig
from ebmscale.training.loop import train
from ebmscale.training.stop import StopSignal
from ebmscale.training.view import View
from ebmscale.world import World


def run_worker(
    config: RunConfig, console: Console, view: View | None = None, stop: StopSignal | None = None
) -> tuple[str, World]:
    """Joins the world that the environment describes, and trains or resumes the run.

    Args:
        config: of the run.
        console: where its progress is shown.
        view: shows it; made for the console where none is given.
        stop: through which others may ask it to stop.

    Returns:
        The run's address, and this worker's place.
    """
    world = World.from_environment(config.device)
    with (stop or StopSignal()).listening() as listening:
        return train(config, view or View(console), world, listening), world
