"""The small parts of labelling and measuring that need no model."""

import json
from pathlib import Path

import pytest

from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.evaluation import Ask, Desk, Measure, Question, Study
from instructlit.evaluation.store import Store
from instructlit.tools.evaluate.run import Loading, subject
from instructlit.tools.evaluate.suite import read_suite
from instructlit.tools.sources import parse_source, source_name
from instructlit.tools.world.gold import CRITERIA, GoldJudge
from instructlit.tools.world.label import summary
from instructlit.tools.world.tasks import pooled
from instructlit.world import Sizes, World, prompted

LOADING = Loading("auto", "float32", "auto", 8, "auto")


def test_a_source_is_a_folder_and_a_temperature() -> None:
    assert parse_source("models/sft") == ("models/sft", 1.0)
    assert parse_source("models/sft@1.3") == ("models/sft", 1.3)
    assert parse_source("a@b/model@0.5") == ("a@b/model", 0.5)
    for wrong in ("models/sft@hot", "models/sft@0", "models/sft@-1", "models/sft@nan", "models/sft@inf"):
        with pytest.raises(UserError, match="is not a temperature"):
            parse_source(wrong)


@pytest.mark.parametrize("told", [("models/sft", 1.0), ("models/sft", 1.3), ("a@b/model", 1.0), ("a@b/model", 0.5)])
def test_the_name_of_a_source_is_read_as_that_source(told: tuple[str, float]) -> None:
    assert parse_source(source_name(*told)) == told


def test_summary_counts_pairs_and_ties() -> None:
    records = [{"ranks": [1, 2, 2, 3]}, {"ranks": [1, 1, 1, 1]}]
    assert summary(records) == {"prompts": 2, "completions": 8, "pairs": 12, "ties": 1 + 6}


def test_figures_are_over_the_answers_they_apply_to() -> None:
    rows = {"m": [[{"kept": True}, {"kept": False}], [{"kept": None}, {"kept": True}], [{"kept": None}], None]}
    study = Study(["m"], {}, Desk({}, Store(Path("nowhere"))), base="m")
    found = pooled(study, lambda: Measure("x", "x", "x"), rows, lambda v: v["kept"], share=True).figures["m"]
    assert (found.value, found.n) == (pytest.approx(2 / 3), 2)


def test_the_gold_scorer_is_a_judge(tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text('{"seed": 1}')
    judge, world = GoldJudge(str(tmp_path)), World(1)
    prompt = "what is the capital of norland ? answer :"
    right = world.ideal(prompt, world.rng("test"))
    asked = [
        Question("score", prompt, (right,)),
        Question("compare", prompt, (right, "tarn tarn")),
        Question("compare", prompt, ("tarn tarn", right)),
        Question("compare", prompt, (right, right)),
        Question("rate", prompt, (right,)),
        Question("decide", prompt, (right,), about="rude"),
        Question("decide", prompt, (right,), about="constraints"),
    ]
    found = [v for _, v in judge.verdicts(asked)]
    assert [v.value for v in found[1:]] == [1.0, 0.0, 0.5, 7.0, 0.0, None]
    verdict = world.judge(prompt, right)
    assert found[0].value == verdict.score
    assert json.loads(found[0].said) == {"rating": 7} | {name: getattr(verdict, name) for name in CRITERIA}


def test_the_suite_prompts_the_base_model_as_the_world_does() -> None:
    spec = read_suite("world").models["prompted"]
    assert subject("prompted", "models/base", LOADING, spec["prefix"]).asked(Ask("x")) == Ask(prompted("x"))


@pytest.mark.parametrize(
    "command",
    [
        ("world",),
        ("quickstart",),
        ("soak",),
        ("evaluate", "a=models/sft"),
        ("labels", "export", "labels.jsonl"),
        ("export", "models/sft"),
        ("iterate", "--config", "loop.yaml"),
    ],
)
def test_a_folder_to_write_in_that_can_be_none_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    for output, told in (("taken/in", "taken is a file"), ("taken", "taken is a file"), ("", "is empty")):
        assert main([*command, f"--output={output}"]) == 2
        assert f"--output: {told}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_world_of_fewer_rows_than_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"^sizes\.reward: found -5"):
        Sizes(reward=-5)
