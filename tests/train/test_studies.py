"""The studies of training: what their tables say, and that each runs through at sizes that say nothing."""

from __future__ import annotations

import pytest

from benchmarks import distillation_study, pretraining_study, study
from benchmarks.distillation_study import closed
from tests.frambicus.sprites import draw_assets


def test_a_finished_run_is_not_repeated(tmp_path):
    first = study.kept(tmp_path, "one", lambda: {"right": 3.0})
    assert first["right"] == 3.0
    assert study.kept(tmp_path, "one", lambda: {}) == first


def test_what_is_said_of_a_gap():
    assert closed([50.0, 52.0], 91.0, [81.0, 83.0]) == "78% of 40.0"
    assert "too small" in closed([50.0, 52.0], 53.5, [52.0, 52.0]), "of under 3 points"
    assert "too small" in closed([40.0, 60.0], 80.0, [70.0, 70.0]), "of under 3 deviations"
    assert study.told([1.0, 3.0]) == "2.0 ± 1.4 (1.0, 3.0)"
    assert study.told([2.0]) == "2.0 ± 0.0 (2.0)"


def test_differences_are_those_of_each_seed():
    runs = {"from scratch": [(40, 50), (20, 30)], "captions": [(45, 55), (29, 39)]}
    found = {
        name: [{"right": right, "color": color, "where": 0.0} for right, color in own] for name, own in runs.items()
    }
    assert "| captions | 37.0 ± 11.3 (45.0, 29.0) | +7.0 ± 2.8 | 47.0 | 0.0 |" in pretraining_study.table(found)


@pytest.mark.slow
def test_the_study_of_distillation_runs_through(tmp_path, capsys):
    argv = ["--work", str(tmp_path), "--smoke", "--seeds", "0", "-o", str(tmp_path / "plot.png")]
    distillation_study.main(argv)
    said = capsys.readouterr().out
    assert "| int4, trained, exported |" in said
    distillation_study.main(argv)
    assert capsys.readouterr().out in said, "nothing was run twice"
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_study_of_pretraining_runs_through(tmp_path, capsys):
    assets = draw_assets(tmp_path / "assets")
    pretraining_study.main(
        ["--assets", str(assets), "--work", str(tmp_path), "--smoke", "--seeds", "0", "-o", str(tmp_path / "plot.png")]
    )
    assert "| all jointly |" in capsys.readouterr().out
