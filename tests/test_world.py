import pytest
import torch

from ebmscale.errors import ConfigError
from ebmscale.world import device_of


@pytest.mark.parametrize(("rank", "index"), [("0", 0), ("1", 1), ("2", 0)])
def test_more_ranks_than_gpus_take_turns(monkeypatch: pytest.MonkeyPatch, rank: str, index: int) -> None:
    """As where two workers evaluate on a machine with one GPU."""
    chosen: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device_of("auto") == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    assert device_of("cpu") == torch.device("cpu")


def test_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device 'tpu'; use auto, cpu or cuda"):
        device_of("tpu")
