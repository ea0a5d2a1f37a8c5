"""A session in Python, as in a notebook: a configuration as a mapping, training with callbacks, and the model."""

import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ebmscale
from ebmscale.errors import ConfigError
from ebmscale.training.callbacks import Progress

FIXTURE = Path(__file__).parent / "fixtures" / "format_2" / "run"


@pytest.fixture
def tree(tiny_text: str) -> dict:
    return yaml.safe_load(tiny_text)


def test_a_notebook(tree: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Progress] = []
    run = ebmscale.train(tree | {"run.name": "notebook", "train.max_samples": 640}, callbacks=[heard.append])
    assert "640 samples" in capsys.readouterr().out
    assert repr(run) == f"TrainedRun('{tmp_path}/runs/notebook')"
    assert Path(run.report).read_text().startswith("<!")
    assert [heard[0].kind, heard[0].max_samples, heard[0].run] == ["start", 640, str(run)]
    assert {one.kind for one in heard} == {"start", "metrics", "evidence"}
    assert [one.values for one in heard if one.kind == "evidence"][-1]["decision"] == run.events()[-1]["decision"]
    assert heard[-1].samples_seen == 640

    model = run.load(device="cpu")
    assert repr(model) == (
        f"LatentModel('notebook': images 1x8x8, latents 4, {model.prior.num_stages} stage(s), 640 samples seen, on cpu)"
    )
    x = model.sample(5, seed=1)
    assert x.shape == (5, 1, 8, 8)
    assert torch.equal(x, model.sample(5, seed=1))
    assert not torch.equal(x, model.sample(5, seed=2))
    z = model.encode(x)
    assert z.shape == (5, 4)
    torch.testing.assert_close(model.encode(x.double().numpy()), z)
    assert model.decode(z.numpy()).shape == x.shape
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8))
    torch.testing.assert_close(
        model.score(pixels.astype(np.uint8)).joint, model.score(torch.tensor(pixels / 127.5 - 1)).joint
    )
    assert model.log_prior(z, model.log_normaliser()).shape == (5,)
    assert model.reconstruct(x).shape == x.shape

    again = ebmscale.train(tree | {"run.name": "notebook", "train.max_samples": 960}, quiet=True)
    assert again == run
    assert ebmscale.load(again, device="auto").samples_seen == 960
    assert capsys.readouterr().out == ""


def test_a_file_and_a_wrong_key(tree: dict, tiny_text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(tiny_text.replace("max_samples: 3200", "max_samples: 64"))
    assert ebmscale.train(tmp_path / "a.yaml", quiet=True).load().samples_seen == 64
    with pytest.raises(ConfigError, match=r"unknown key train\.max_sample; did you mean train\.max_samples\?"):
        ebmscale.train(tree | {"train.max_sample": 3})
    with pytest.raises(ConfigError, match="did you mean preset:digits"):
        ebmscale.train("preset:digit")
    for other in (None, 3, ["a.yaml"]):
        with pytest.raises(ConfigError, match="not"):
            ebmscale.train(other)
    with pytest.raises(ConfigError, match=r"use ray\.num_workers=0"):
        ebmscale.train(tree | {"ray.num_workers": 1}, callbacks=[print])


def test_an_error_of_a_callback_ends_the_training(tree: dict) -> None:
    def stop(progress: Progress) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ebmscale.train(tree, callbacks=[stop], quiet=True)


def test_the_examples_of_the_model_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the docstrings of LatentModel and `load`; the sizes in them are those of the preset, not of this run."""
    shutil.copytree(FIXTURE, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    model = ebmscale.load("runs/digits")
    checker, num = doctest.OutputChecker(), 0
    names = {"ebmscale": ebmscale, "np": np, "model": model}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for test in (*finder.find(ebmscale.LatentModel, globs=names), *finder.find(ebmscale.load, globs=names)):
        for example in test.examples:
            source, want = (text.replace("16)", "4)").replace("16]", "4]") for text in (example.source, example.want))
            if "at_stage" in source:
                source, want = example.source, example.want
            if not want:
                exec(source, test.globs)
                continue
            got = repr(eval(source, test.globs)) + "\n"
            assert checker.check_output(want, got, 0), (source, want, got)
            num += 1
    assert num >= 7
