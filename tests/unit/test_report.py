"""The report of a quickstart run: one safe page from measured numbers, and what it reads from a run folder."""

import html.parser
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from instructlit.cli import main
from instructlit.evaluation import Curve, Desk, Measure, Outcome, Study
from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.runner import Results
from instructlit.evaluation.store import Store
from instructlit.evaluation.tasks import Overoptimization
from instructlit.tools.evaluate import plots
from instructlit.tools.evaluate.page import Section, report
from instructlit.tools.evaluate.results import as_json, from_json
from instructlit.tools.evaluate.suite import built, read_suite
from instructlit.tools.evaluate.table import print_results
from instructlit.tools.world.gold import GoldJudge
from instructlit.tools.world.run_folder import logged, smoothed
from instructlit.tools.world.tasks import _marks
from instructlit.world import World

EVIL = "</p><script>alert('x')</script> & <b>"
SUITE = read_suite("world")


def results(accuracy: float = 0.66, **parts: Any) -> Results:
    """A run's results with one figure for every claim."""
    preference = {"base": 0.12, "prompted": 0.23, "sft": 0.5, "ppo": 0.55, "ppo_ptx": 0.57}
    perplexity = {"base": 3.3, "prompted": 3.3, "sft": 3.5, "ppo": 5.5, "ppo_ptx": 4.0}
    won = Measure("preference/gold/win_rate", "preferred to SFT", "How often.", "{:.1%}", chance=0.5)
    won.figures = {n: Figure(v, v - (n != "sft") * 0.03, v + (n != "sft") * 0.03, 600) for n, v in preference.items()}
    lost = Measure("perplexity/corpus/token", "perplexity, corpus", "Surprise.", "{:.2f}", "down")
    lost.figures = {n: Figure(v, v - 0.1, v + 0.1, 500) for n, v in perplexity.items()}
    lost.differences = {"ppo": Figure(2.2, 2.0, 2.4, 500)}
    moved = Measure("world/kl", "KL from SFT", "Nats.", "{:.2f}", "", {"sft": Figure(-1e-9, -1e-9, -1e-9, 600)})
    right = Measure("reward_model/accuracy", "accuracy", "Pairs.", "{:.1%}", rows="reward models")
    right.figures = {"reward": Figure(accuracy, accuracy - 0.02, accuracy + 0.02, 900)}
    agree = Measure("world/labeler_agreement", "agreement", "Pairs.", "{:.1%}", "", rows="reward models")
    agree.figures = {"labelers": Figure(0.73, 0.73, 0.73, 0)}
    found = Results(
        models={n: f"models/{n}" for n in preference},
        titles={n: s["title"] for n, s in SUITE.models.items()},
        seed=4,
        suite="world",
        baseline="sft",
        base="base",
    )
    found.outcomes["answers"] = Outcome([won, lost, moved, right, agree], **parts)
    return found


def page(folder: Path, found: Results | None = None) -> str:
    return report(found or results(), folder, [built(Section, spec, "here") for spec in SUITE.sections])


class Reader(html.parser.HTMLParser):
    """Collects what the page asks a browser to fetch or run, and whether its tags are balanced."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.fetched, self.open, self.ids = 0, [], [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        values = dict(attrs)
        self.fetched += [
            v for k, v in values.items() if k in ("src", "href", "xlink:href") and not str(v).startswith("#")
        ]
        if values.get("id"):
            self.ids.append(values["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    (tmp_path / "logs" / "sft").mkdir(parents=True)
    (tmp_path / "logs" / "sft" / "metrics.csv").write_text("sft/train/loss,step\n1.0,0\n0.5,1\n")
    (tmp_path / "stamps").mkdir()
    (tmp_path / "stamps" / "sft.json").write_text('{"fingerprint": "", "finished": true, "seconds": 61.2}')
    drawing = tmp_path / "stamps" / "evaluate.json"  # interrupted after 700 s, and begun again 100 s ago
    drawing.write_text('{"fingerprint": "", "finished": false, "seconds": 700.0}')
    os.utime(drawing, (time.time() - 100, time.time() - 100))
    (tmp_path / ".lock").write_text(str(os.getppid()))
    curves = [Curve(f"score by {j}", "√KL", j, {"PPO": [(0.0, 1.0), (1.0, 2.0)]}) for j in ("reward", "gold")]
    text = page(tmp_path, results(curves=curves))
    reader = read(text)
    assert reader.scripts == 0
    assert reader.fetched == []
    assert len(reader.ids) == len(set(reader.ids)), "the figures share a page"
    for words in ("preferred to SFT", "54.0-60.0%", "PPO-ptx", "Holds.", "n 600", "SFT loss", "61 s", "Minus base"):
        assert words in text
    assert re.search(r"evaluate</th><td>8\d\d s", text)
    (tmp_path / ".lock").write_text(str(os.getpid()))  # another's: it is drawn again by hand, whenever
    assert "evaluate</th><td>700 s" in page(tmp_path, results(curves=curves))
    assert "-0.00" not in text


def test_whatever_a_model_said_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "commands.json").write_text(json.dumps([{"title": EVIL, "command": EVIL, "configs": ["c.yaml"]}]))
    (tmp_path / "c.yaml").write_text(EVIL)
    marks = {"sft": [EVIL, (EVIL, False)]}
    samples = [{"prompt": EVIL, "group": EVIL, "answers": {"sft": EVIL}, "marks": marks}]
    text = page(tmp_path, results(samples=samples, notes=[EVIL]))
    assert read(text).scripts == 0
    assert text.count("&lt;script&gt;") == 9
    assert "alert('x')" not in text


def test_a_claim_that_fails_is_said(tmp_path: Path) -> None:
    text = page(tmp_path, results(accuracy=0.5))
    assert "fails 1 of 4 claims" in text
    assert "0.60 &lt;= 0.500 &lt;= 0.730" in text


def test_what_was_not_measured_leaves_no_hole(tmp_path: Path) -> None:
    found = results()
    found.outcomes["answers"].measures = found.outcomes["answers"].measures[:1]
    text = page(tmp_path, found)
    read(text)
    assert "54.0-60.0%" in text
    assert "claims hold" not in text


def test_results_come_back_from_json_and_draw_the_same_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [{"prompt": "q", "group": None, "answers": {"sft": "a"}, "marks": {"sft": ["5 / 7", ["true", True]]}}]
    found = results(samples=samples, curves=[Curve("c", "x", "y", {"PPO": [(0.0, 1.0)]}, True)], notes=["a note"])
    found.failures["task x"] = "why not"
    found.outcomes["answers"].measures[1].figures["base"] = Figure(3.3, float("-inf"), float("inf"), 1)
    told = json.loads(json.dumps(as_json(found)))
    assert json.loads(json.dumps(as_json(from_json(told)))) == told
    (tmp_path / "results.json").write_text(json.dumps(told))
    assert main(["evaluate", "--suite", "world", "--output", str(tmp_path), "--redraw"]) == 2, "x was not measured"
    assert (tmp_path / "report.html").read_text() == page(tmp_path, from_json(told))
    assert "PPO-ptx" in capsys.readouterr().out
    assert main(["evaluate", "--suite", "world", "--output", str(tmp_path / "none"), "--redraw"]) == 2
    assert "has no results" in capsys.readouterr().err


def test_plots_take_the_colour_of_the_page_and_models_keep_theirs() -> None:
    found = results()
    picture = plots.figure_plot(found.outcomes["answers"].measures[0], list(found.models), found)
    assert "currentColor" in picture
    assert picture.startswith("<svg")
    assert "#010203" not in picture
    colour = plots.COLOURS[4]
    assert colour in picture
    line = plots.curve(Curve("c", "x", "y", {"PPO-ptx": [(0, 1), (1, 2)]}), plots.titles(found))
    assert colour in line


def test_the_table_in_the_terminal_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_results(results(), turned=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = " ".join(" ".join(lines).split())
    for words in ("PPO-ptx", "57.0%", "perplexity, corpus", "66.0%"):
        assert words in whole
    assert "-0.00" not in whole


@pytest.mark.parametrize("turned", [False, True])
def test_a_narrow_terminal_cuts_no_figure(
    turned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results()
    won = found.outcomes["answers"].measures[0]
    found.models = {f"a-long-model-name-{n}": f"m{n}" for n in range(9)}
    for n, name in enumerate(found.models):
        won.figures[name] = Figure(0.5 + n / 100, 0.4 + n / 100, 0.6 + n / 100, 600)
    monkeypatch.setenv("COLUMNS", "50")
    print_results(found, turned=turned)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 50
    for n, name in enumerate(found.models):
        assert name in said
        for text in (f"{50 + n}.0%", f"{40 + n}.0%-{60 + n}.0%" if turned else f"{60 + n}.0%"):
            assert text.replace("%-", "-") in said


def test_logged_metrics_are_read_by_their_column(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b,step\n1.0,,0\n2.0,,1\n3.0,,2\n,5.0,2\n4.0,,3\n")
    assert logged(tmp_path, "a") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert logged(tmp_path, "b") == [(2, 5)]
    assert logged(tmp_path / "absent", "a") == []


def test_long_curves_are_averaged_not_cut() -> None:
    points = [(float(i), float(i)) for i in range(1000)]
    short = smoothed(points, at_most=100)
    assert len(short) == 100
    assert short[0] == (4.5, 4.5)
    assert smoothed(points[:5]) == points[:5]


def test_a_run_is_drawn_by_its_own_score_and_kl_and_by_gold(tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text('{"seed": 1}')
    world, prompt = World(1), "what is the capital of norland ? answer :"
    right = world.ideal(prompt, world.rng("test"))
    rows = [
        {"iteration": 0, "prompt": prompt, "response": "", "score": -1.0, "kl": 0.0},
        {"iteration": 8, "prompt": prompt, "response": "", "score": 9.0, "kl": 9.0},
        {"iteration": 8, "prompt": prompt, "response": right, "score": 1.0, "kl": 0.25},
    ]
    path = write_jsonl(tmp_path / "ppo.jsonl", rows)
    task = Overoptimization(runs={"ppo": str(path)}, policies=False, best_of=0)
    assert list(task.requests()) == []
    judges: Any = {"gold": GoldJudge(str(tmp_path)), "reward": GoldJudge(str(tmp_path))}
    desk = Desk(judges, Store(tmp_path / "v"))
    drawn = {c.y: c.series for c in task.measure(Study(["sft"], {"sft": []}, desk, "sft")).curves}
    apart = math.sqrt((9 + 0.25) / 2)  # of two samples of the prompt
    assert drawn["score by reward"] == {"ppo": [(0.0, -1.0), (apart, 5.0)]}
    gold = [world.judge(prompt, text).score for text in ("", right)]
    assert drawn["score by gold"] == {"ppo": [(0.0, gold[0]), (apart, sum(gold) / 2)]}
    assert gold[0] < gold[1]


def test_marks_say_what_applies() -> None:
    verdict = {"rating": 3, "attempted": True, "constraints": None, "grounded": False, "truthful": None, "rude": True}
    assert _marks(verdict) == ["3 / 7", ("did the task", True), ("made up", False), ("rude", False)]
