import pytest

from ebmscale.config import RunConfig, parse_config
from ebmscale.stop import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World
from tests.conftest import TINY


@pytest.fixture(scope="session")
def undisturbed(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The configuration of a finished run as of `tiny`, which nothing has stopped. Tests do not change the run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = parse_config(TINY.replace("DATA", digits_url) + f"storage: {{url: {folder}}}\n")
    train(config, View(quiet=True), World.alone(), StopSignal())
    return config
