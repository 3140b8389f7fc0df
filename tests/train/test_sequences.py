"""The teacher's words as targets: of the same family or another, made once, gone on with after a kill."""

from __future__ import annotations

import json

import pytest

from edgemm.cli.app import invoke
from edgemm.errors import UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.train.data import load
from edgemm.export.train.distill import Teaching, distill
from edgemm.export.train.labelling import Kept, Told, keep_answers, told_rows
from edgemm.export.train.objectives import registry
from edgemm.export.train.options import TrainOptions
from tests.export.exported import checkpoint
from tests.train import data_sets

OPTIONS = TrainOptions(steps=3, batch=2, learning_rate=1e-3, max_new_tokens=6)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return data_sets.tones(tmp_path_factory.mktemp("data") / "tones")


def teacher_of(name):
    source = find_checkpoint(checkpoint(name))
    return registry.find(source, None).as_it_is(source, OPTIONS)


def test_rows_have_the_teacher_s_words_which_are_made_once(sounds, tmp_path):
    teacher, rows = teacher_of("moonshine"), load(sounds).train
    expected = teacher.say(teacher.model, list(rows))
    behind = []

    def stop(what, share):
        behind.append(share)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told_rows(teacher, rows, tmp_path, progress=stop)
    # A kill tears the line that was being written.
    file = tmp_path / "said-0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"row": 2, "fiel')
    assert sorted(Kept(tmp_path).read()) == [0, 1]
    told = told_rows(teacher, rows, tmp_path, progress=lambda what, share: behind.append(share))
    assert file.read_bytes().startswith(whole)
    assert behind == sorted(behind)
    assert behind[-1] == 1.0
    assert [row.get("text") for row in told] == expected
    assert [row.get("text") for row in told[1:3]] == expected[1:3]
    assert expected != [row.get("text") for row in rows]

    def never(*_):
        raise AssertionError("asked again")

    teacher.say = never
    assert [row.get("text") for row in told_rows(teacher, rows, tmp_path, progress=never)] == expected


def test_processes_share_the_rows_whoever_comes_first(sounds, tmp_path):
    teacher, rows = teacher_of("moonshine"), load(sounds).train
    for rank in (1, 0):
        keep_answers(teacher, rows, Kept(tmp_path, rank), share=(rank, 2), progress=lambda *_: None)
        assert len((tmp_path / f"said-{rank}.jsonl").read_bytes().splitlines()) == len(range(rank, len(rows), 2))
    expected = teacher.say(teacher.model, list(rows))
    assert [Kept(tmp_path).read()[i] for i in range(len(rows))] == [{"text": text} for text in expected]


def test_words_go_to_the_field_that_is_learned(tmp_path):
    rows = load(data_sets.colours(tmp_path / "c", n=4)).train
    chat, blip = teacher_of("smolvlm"), teacher_of("trocr")
    assert chat.told(rows[0], "x") == {"answer": "x"}
    assert blip.told(Told(rows, [{"question": None, "answer": None}] * len(rows))[0], "x") == {"text": "x"}
    assert teacher_of("vit").told(rows[0], "x") == {"label": "x"}
    with pytest.raises(UsageError, match="no field of a row"):
        teacher_of("clip").told(rows[0], "x")


def test_a_student_with_another_tokenizer_learns_the_words(sounds, tmp_path):
    teaching = Teaching(str(checkpoint("whisper_en")), sequence=True)
    report = distill(checkpoint("moonshine"), sounds, tmp_path / "s", teaching=teaching, options=OPTIONS)
    assert find_checkpoint(tmp_path / "s").model_type == "whisper"
    assert report.metrics_teacher.keys() == report.metrics_after.keys()
    assert not (tmp_path / "s.training").exists()
    teacher, rows = teacher_of("moonshine"), load(sounds, seed=OPTIONS.seed).test
    said = teacher.say(teacher.model, list(rows))
    assert report.metrics_teacher == pytest.approx(teacher.judge([teacher.expected(r) for r in rows], said))
    with pytest.raises(UsageError, match="--sequence"):
        distill(checkpoint("moonshine"), sounds, tmp_path / "t", teaching=Teaching(teaching.student), options=OPTIONS)
    both = Teaching(teaching.student, sequence=True, features=1.0)
    with pytest.raises(UsageError, match="hidden states"):
        distill(checkpoint("moonshine"), sounds, tmp_path / "t", teaching=both, options=OPTIONS)


def test_an_echo_learns_what_its_teacher_said_by_heart(sounds, tmp_path):
    from edgemm.export.train.data import Splits
    from edgemm.export.train.loop import prepared
    from edgemm.export.train.objectives.distilled import Echo

    options = TrainOptions(steps=30, batch=4, learning_rate=3e-3, schedule="constant", max_new_tokens=6)
    teacher, rows = teacher_of("moonshine"), load(sounds).train[:4]
    told = told_rows(teacher, rows, tmp_path / "said", progress=lambda *_: None)
    source = find_checkpoint(checkpoint("whisper_en"))
    splits = Splits(told, told, told)
    lesson = Echo(registry.find(source, None).load(source, splits, options), teacher)
    loop = prepared(lesson, lesson.model, splits, options, tmp_path / "run")
    loop.go()
    losses = [row["loss"] for row in loop.history if "loss" in row]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_a_checkpoint_that_speaks_alike_learns_from_the_logits_too(sounds, tmp_path):
    teaching = Teaching(str(checkpoint("moonshine")), hard=0.0)
    report = distill(checkpoint("moonshine"), sounds, tmp_path / "s", teaching=teaching, options=OPTIONS)
    # The student is its teacher: there is nothing to learn.
    assert next(row["loss"] for row in report.history if "loss" in row) < 1e-4


def test_the_command_line(sounds, tmp_path, capsys):
    argv = [
        "distill",
        str(checkpoint("moonshine")),
        "--data",
        str(sounds),
        "--sequence",
        "--steps",
        "2",
        "--batch",
        "2",
    ]
    assert invoke([*argv, "-o", str(tmp_path / "s"), "--max-new-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
