"""The body of one worker: the same on a laptop, under torchrun and on a cluster."""

from ebmscale.config import RunConfig
from ebmscale.stop import StopSignal
from ebmscale.terminal import Terminal
from ebmscale.training.claim import Launch
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World


def run_worker(
    config: RunConfig,
    console: Terminal,
    view: View | None = None,
    stop: StopSignal | None = None,
    launch: Launch | None = None,
) -> tuple[str, World]:
    """Joins the world that the environment describes, and trains or resumes the run.

    Args:
        config: of the run.
        console: shows its progress.
        view: shows the run; by default one for the console.
        stop: lets others request a stop.
        launch: identifies the launcher, if one restarts this worker by itself.

    Returns:
        The run's address, and this worker's world.
    """
    world = World.from_environment(config.device)
    with (stop or StopSignal()).listening() as listening:
        return train(config, view or View(console), world, listening, launch), world
