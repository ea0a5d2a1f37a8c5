"""Networks of a run, before they are trained."""

import pytest

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.model.build import build_model, build_on_meta, build_ratio_network
from tests.training.test_resume import changed


@pytest.mark.parametrize("part", ["generator", "ratio"])
def test_weights_that_cannot_be_counted_are_refused_wherever_networks_are_made(tiny: RunConfig, part: str) -> None:
    config = changed(tiny, model={part: {"hidden": [2**62]} if part == "ratio" else {"width": 2**62}})
    with pytest.raises(ConfigError, match="more weights than can be counted"):
        build_on_meta(config, (1, 8, 8))
    with pytest.raises(ConfigError, match="more weights than can be counted"):
        build_ratio_network(config) if part == "ratio" else build_model(config, (1, 8, 8))
