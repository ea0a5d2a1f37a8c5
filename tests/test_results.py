"""Results that the repository keeps: their small form, and the tables and figures that pages show of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ebmscale.report.result import Result
from ebmscale.report.shares import with_shares
from tools import page_parts, results
from tools.gpu import page as gpu

MACHINE = {"processor": "a processor", "cores": 2, "python": "3.11", "torch": "2.13"}


def comparison(**rows: list[dict[str, float]]) -> dict[str, Any]:
    """A `comparison.json` with these values of rows, a dictionary a seed."""
    found = [
        {"row": row, "seed": seed, "url": "/somewhere", "measured": values, "failure": None}
        | {"commit": "abc1234" if seed < 2 else "def5678", "machine": MACHINE}
        for row, of in rows.items()
        for seed, values in enumerate(of)
    ]
    return {"name": "few", "about": "About.", "ebmscale": "0.1.0", "results": found}


def values(distance: float, nats: float, cpu_s: float = 10.0) -> dict[str, float]:
    common = {"mse": 0.04, "num_manifold": 9.0, "psnr": 20.0, "cpu_s": cpu_s, "samples": 640.0}
    return {"FD-x": distance, "KD-x": distance / 10, "KD-x_error": 0.5, "ceiling_FD-x": 2.0, "nats": nats} | common


def test_the_share_of_the_way_is_counted_from_the_gaussian_row_of_the_same_seed() -> None:
    rows = [
        Result("gaussian", 0, "", {"FD-x": 10.0, "ceiling_FD-x": 3.0}, None),
        Result("gaussian", 1, "", {"FD-x": 12.0, "ceiling_FD-x": 4.0}, None),
        Result("staged", 0, "", {"FD-x": 4.0, "ceiling_FD-x": 2.0}, None),
        Result("staged", 1, "", {"FD-x": 3.0, "ceiling_FD-x": 4.0}, None),
        Result("staged", 2, "", {"FD-x": 3.0, "ceiling_FD-x": 4.0}, None),
        Result("failed", 0, "", {}, "why"),
    ]
    shares = [result.measured.get("share-x") for result in with_shares(rows)]
    assert shares == [0.0, 0.0, 0.75, 1.125, None, None]


def test_a_table_is_made_of_the_small_form_alone() -> None:
    tree = comparison(
        gaussian=[values(10.0, -20.0), values(12.0, -21.0)], staged=[values(3.0, -9.0), values(5.0, -9.5)]
    )
    text = results.as_text(results.small_form(tree, "configs/compare/few.yaml"))
    assert "/somewhere" not in text
    assert "num_manifold" not in text
    small = json.loads(text)
    lines = results.distance_table(results.results_of(small)).splitlines()
    assert lines[0] == "| row | FD-x | its ceiling | share of the way | KD-x | held-out nats | CPU s |"
    assert lines[2] == "| gaussian | 11 ± 1.41 | 2 | 0 | 1.10 ± 0.1414 | -20.50 ± 0.7071 | 10 |"
    assert (
        lines[3]
        == "| staged | **4 ± 1.41** | 2 | **0.7875 ± 0.1237** | **0.4000 ± 0.1414** | **-9.25 ± 0.3536** | 10 |"
    )
    assert results.origin(small) == (
        "`configs/compare/few.yaml`, seeds 0, 1; commit abc1234 on a processor, 2 cores, torch 2.13.\n"
    )


def test_every_commit_and_machine_is_named() -> None:
    small = results.small_form(comparison(staged=[values(3.0, -9.0)] * 3), "f.yaml")
    assert [one["origin"] for one in small["results"]] == [0, 0, 1]
    assert "commit abc1234 on" in results.origin(small)
    assert "commit def5678 on" in results.origin(small)


def test_stages_have_a_table_and_a_line_in_the_figure() -> None:
    tree = comparison(staged=[values(3.0, -9.0, 20.0)], plain=[values(9.0, -19.0)])
    tree["results"][0]["by_stage"] = [
        {"stage": 0, "cpu_s": 5.0, "FD-x": 12.0, "precision": 0.5, "nats": -20.0},
        {"stage": 1, "cpu_s": 11.0, "FD-x": 6.0, "nats": -12.0},
    ]
    text = results.as_text(results.small_form(tree, "f.yaml"))
    found = results.results_of(json.loads(text))
    assert results.stage_table(found).splitlines() == [
        "| FD-x / nats / CPU s | k = 0 | k = 1 | k = 2 |",
        "| --- | ---: | ---: | ---: |",
        "| staged, seed 0 | 12 / -20 / 5 | 6 / -12 / 11 | 3 / -9 / 20 |",
    ]
    without = results.as_text(results.small_form(comparison(staged=[values(3.0, -9.0, 20.0)]), "f.yaml"))
    assert results.stage_table(results.results_of(json.loads(without))) == ""
    assert len(results.figure("few", text)) > len(results.figure("few", without))


def test_a_table_of_anomalies_has_a_line_a_score_the_best_first() -> None:
    rows = {f"digit-{one}": {"auprc_ratio": 0.9, "auprc_pixels_knn": 0.8 + one / 100, "cpu_s": 3.0} for one in (1, 4)}
    rows["digit-4"]["prevalence"] = rows["digit-1"]["prevalence"] = 0.35
    small = results.small_form(comparison(**{row: [of] for row, of in rows.items()}), "f.yaml")
    lines = results.anomaly_table(results.results_of(small), {"A & B": {"1": 0.5}}).splitlines()
    assert lines[0] == "| AUPRC; the class is | 1 | 4 | mean | worst |"
    assert lines[2] == "| published: A & B | 0.500 | - | - | - |"
    assert lines[3] == "| chance | 0.350 | 0.350 | 0.350 | 0.350 |"
    assert lines[4] == "| `ratio` | 0.9000 | 0.9000 | 0.900 | 0.900 |"
    assert lines[5] == "| `pixels_knn` | 0.8100 | 0.8400 | 0.825 | 0.810 |"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page, one comparison and no results."""
    monkeypatch.setattr(page_parts, "ROOT", tmp_path)
    monkeypatch.setattr(page_parts, "PAGES", ("page.md",))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "configs" / "compare" / "results")
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "records")
    (tmp_path / "configs" / "compare").mkdir(parents=True)
    (tmp_path / "configs" / "compare" / "others.yaml").write_text("name: few\n")
    parts = "".join(f"<!-- {kind}written by tools/pages -->\n<!-- end of {kind.split(':')[0]} -->\nAfter.\n"
                    for kind in ("results: few, ", "gpu: "))  # fmt: skip
    (tmp_path / "page.md").write_text(f"Before.\n{parts}")
    return tmp_path


def test_pages_and_figures_are_written_once_results_are_kept(repository: Path) -> None:
    assert page_parts.main(None, ["--check"]) == 1
    assert page_parts.main(None, []) == 0
    page = (repository / "page.md").read_text()
    assert "Not measured yet." in page
    assert gpu.NOTHING in page
    assert page_parts.main(None, ["--check"]) == 0
    found = repository / "comparison.json"
    found.write_text(json.dumps(comparison(staged=[values(3.0, -9.0), values(4.0, -9.1)])))
    assert page_parts.main(None, ["--keep", str(found)]) == 0
    page = (repository / "page.md").read_text()
    assert "`configs/compare/others.yaml`, seeds 0, 1; commit" in page
    assert page.startswith("Before.\n")
    assert page.count("After.\n") == 2
    assert page_parts.main(None, ["--check"]) == 0
    picture = results.FOLDER / "few.svg"
    drawn = picture.read_bytes()
    assert results.digest((results.FOLDER / "few.json").read_text()).encode() in drawn
    assert b"held-out nats" in drawn or b"<svg" in drawn
    found.write_text(json.dumps(comparison(staged=[values(3.0, -9.0), values(4.5, -9.1)])))
    page_parts.keep(found)
    assert page_parts.out_of_date() == ["page.md", "few.svg"]


def test_a_figure_has_the_same_bytes_each_time() -> None:
    text = results.as_text(results.small_form(comparison(staged=[values(3.0, -9.0)]), "f.yaml"))
    assert results.figure("few", text) == results.figure("few", text)


def test_records_of_a_gpu_are_a_line_a_part_and_trials_on_a_cpu_do_not_count(tmp_path: Path) -> None:
    record = {"part": "engines", "state": "done", "small": True, "commit": "abc1234", "machine": {"gpu": "a GPU"}}
    record |= {"seconds": 3.2, "values": {"ZeRO 0, ms": 1.23456, "stages": [{"stage": 1, "bound": 0.5}]}}
    (tmp_path / "gpu_check.json").write_text(json.dumps({"engines": record}))
    assert gpu.block(tmp_path) == gpu.NOTHING
    (tmp_path / "gpu_check.json").write_text(json.dumps({"engines": record | {"small": False}}))
    text = gpu.block(tmp_path)
    assert "| engines | done | 3 | ZeRO 0, ms: 1.235; stages: stage 1, bound 0.5 |" in text
    assert "commit abc1234, a GPU" in text
