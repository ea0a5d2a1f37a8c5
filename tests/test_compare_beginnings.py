"""What the rows of a comparison train in common."""

from ebmscale.compare import make_jobs
from ebmscale.compare.beginnings import find_beginnings, in_turn

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
