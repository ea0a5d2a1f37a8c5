"""The public surface: what `import ebmscale` gives, how quickly, and without which libraries."""

import inspect
import subprocess
import sys

import pytest

import ebmscale


def test_every_public_name_is_there_and_documented() -> None:
    for name in ebmscale.__all__:
        found = getattr(ebmscale, name)
        if name != "__version__":
            assert "Example:" in str(inspect.getdoc(found)), name
    assert set(dir(ebmscale)) == set(ebmscale.__all__)


def test_functions_show_their_parameters() -> None:
    for name in ("fit_ratio", "load", "load_config", "train"):
        for parameter in inspect.signature(getattr(ebmscale, name)).parameters.values():
            assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), name
            assert parameter.annotation is not parameter.empty, name
    assert {"p", "q", "base", "settings", "seed"} <= set(inspect.signature(ebmscale.fit_ratio).parameters)
    assert list(inspect.signature(ebmscale.load).parameters) == ["url", "device"]


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        _ = ebmscale.sample


def test_importing_needs_neither_torch_nor_ray_nor_deepspeed() -> None:
    code = "import sys, ebmscale; print([m for m in ('torch', 'ray', 'deepspeed', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
