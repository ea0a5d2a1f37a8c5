"""What the rows of a comparison train in common."""

import pytest

from ebmscale.compare import make_jobs, runs
from ebmscale.compare.beginnings import Beginning, find_beginnings, in_turn
from ebmscale.compare.rows import EvaluationBlock
from ebmscale.storage import Storage

DIGITS = "configs/compare/digits.yaml"


def test_rows_of_two_stages_have_one_beginning_for_each_seed() -> None:
    jobs = make_jobs(DIGITS, None, 2, [])
    found = find_beginnings(jobs)
    names = {job.config.run.name for job in jobs if job.row != "gaussian"}
    assert found.keys() == names
    beginnings = {beginning.config.run.name: beginning.config for beginning in found.values()}
    assert sorted(one.run.seed for one in beginnings.values()) == [0, 1]
    for name, one in beginnings.items():
        assert name.endswith(f"-seed{one.run.seed}")
        assert (one.method, one.most_stages, one.prior.base) == ("gaussian", 0, "standard")
        assert one.train.max_samples == one.train.generator.stop_samples == 30_000
        assert one.stages.buffer_samples == 12_800
    first, second, gaussian = (next(job for job in jobs if job.row == row) for row in ("nce", "lebm", "gaussian"))
    assert found[first.config.run.name] is found[second.config.run.name]
    assert gaussian.config.run.name not in found


def test_a_row_alone_and_joint_training_have_none() -> None:
    assert not find_beginnings(make_jobs(DIGITS, ["nce", "gaussian"], 1, []))
    assert not find_beginnings(
        make_jobs(DIGITS, None, 1, ["train.generator.stop_samples=0", "stages.settle_samples=1000"])
    )


def test_rows_whose_generators_differ_have_none_in_common() -> None:
    wide = make_jobs(DIGITS, ["nce"], 1, ["model.generator.width=20"])
    assert not find_beginnings([*make_jobs(DIGITS, ["tre"], 1, []), *wide])


def test_the_first_of_each_beginning_starts_first() -> None:
    jobs = make_jobs(DIGITS, ["mixture", "lebm", "nce"], 2, [])
    assert in_turn(jobs, find_beginnings(jobs)) == [0, 3, 1, 2, 4, 5]


def test_what_rows_have_in_common_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs(DIGITS, ["mixture", "nce", "gaussian"], 1, [])
    beginnings = find_beginnings(jobs)
    calls = list[tuple[str, str]]()

    class Fake:
        def run(self, command: str, url: str, *options: str, **environment: str) -> None:
            calls.append((url.rpartition("/")[2], options[options.index("--metrics") + 1]))

    def values(run: Storage, evaluation: EvaluationBlock, networks: object) -> dict[str, float]:
        return dict.fromkeys(evaluation.metrics, float("beginning" in run.url))

    monkeypatch.setattr(runs, "measured_values", values)
    monkeypatch.setattr(Beginning, "is_trained", True)
    block = EvaluationBlock(metrics=("frechet", "ceiling", "latents"), split="test")
    found = {
        job.row: runs._measure(job.config, block, beginnings, [], Fake(), lambda line: None)  # type: ignore[arg-type]
        for job in jobs
    }
    name = beginnings["nce-seed0"].config.run.name
    own = [("mixture-seed0", "frechet,latents"), (name, "ceiling"), ("nce-seed0", "frechet,latents")]
    assert sorted(calls) == sorted([*own, ("gaussian-seed0", "frechet,ceiling,latents")])
    assert list(found["nce"].items()) == [("frechet", 0.0), ("ceiling", 1.0), ("latents", 0.0)]
    assert found["gaussian"]["ceiling"] == 0.0


def test_posteriors_of_chains_are_not_those_of_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Beginning, "is_trained", True)
    jobs = make_jobs(DIGITS, ["mixture", "nce"], 1, ["posterior.num_steps=2"])
    beginning = find_beginnings(jobs)["nce-seed0"]
    assert beginning.measures(jobs[0].config) == ()
