"""The report: one safe page from measured numbers, and what it reads from a run folder."""

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from instructlit.tools.quickstart.verdict import criteria
from instructlit.tools.world import plots
from instructlit.tools.world.page import Page
from instructlit.tools.world.report import one_per_use_case, smoothed, world_report
from instructlit.tools.world.result_table import TITLES, print_results
from instructlit.tools.world.run_folder import logged, optimisation_curve
from instructlit.world import World

EVIL = "</p><script>alert('x')</script> & <b>"


def results() -> dict[str, Any]:
    models = []
    for place, name in enumerate(TITLES):
        preference = [0.12, 0.23, 0.5, 0.55, 0.57][place]
        spread = 0.0 if name == "sft" else 0.03
        models.append(
            {
                "name": name,
                "preference": preference,
                "preference_low": preference - spread,
                "preference_high": preference + spread,
                "rating": 2.0 + place,
                "constraints": 0.1 * place,
                "hallucination": 0.5,
                "truthful": 0.4,
                "toxicity": 0.1,
                "toxicity_respectful": 0.05,
                "kl": -1e-9 if name == "sft" else 1.5,
                "perplexity": [3.3, 3.3, 3.5, 5.5, 4.0][place],
                "tasks": {"fact": 0.5},
            }
        )
    return {
        "seed": 4,
        "seconds": {"pretrain": 61.2},
        "reward_accuracy": 0.66,
        "labeler_agreement": 0.73,
        "counts": {"test prompts": 600},
        "models": models,
    }


def page(**parts: Any) -> str:
    found = results()
    picture = plots.preference_plot(found["models"])
    return Page(results=found, criteria=criteria(found), preference=picture, **parts).html()


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


def test_the_page_is_whole_and_self_contained() -> None:
    curves = {name: [{"kl": 0.1 * i, "score": i, "gold": -i} for i in range(4)] for name in ("ppo", "ppo_ptx")}
    text = page(
        optimisation=plots.optimisation_plots(curves),
        training=[plots.curve_plot("loss", {"training": [(0, 1), (1, 0.5)]}, "step")],
    )
    reader = read(text)
    assert reader.scripts == 0
    assert reader.fetched == []
    assert len(reader.ids) == len(set(reader.ids)), "the figures share a page"
    for words in ("preferred to SFT", "54.0% to 60.0%", "task: fact", "Holds.", "600 test prompts"):
        assert words in text


def test_whatever_a_model_said_is_escaped() -> None:
    answers = [{"model": "sft", "text": EVIL, "rating": 1, "attempted": False, "rude": True}]
    text = page(
        samples=[{"prompt": EVIL, "use_case": EVIL, "answers": answers}],
        commands=[{"title": EVIL, "command": EVIL, "configs": ["c"]}],
        configs={"c": EVIL},
        versions={EVIL: EVIL},
    )
    assert read(text).scripts == 0
    assert text.count("&lt;script&gt;") == 8
    assert "alert('x')" not in text


def test_a_claim_that_fails_is_said() -> None:
    found = results()
    found["reward_accuracy"] = 0.5
    picture = plots.preference_plot(found["models"])
    text = Page(results=found, criteria=criteria(found), preference=picture).html()
    assert "falls short in 1 of 4 claims" in text
    assert "0.60 &lt;= 0.500 &lt;= 0.730" in text


def test_the_same_numbers_draw_the_same_page() -> None:
    assert page() == page()


def test_plots_take_the_colour_of_the_page() -> None:
    picture = plots.preference_plot(results()["models"])
    assert "currentColor" in picture
    assert picture.startswith("<svg")
    assert "#010203" not in picture


def test_the_table_in_the_terminal_fits_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_results(results())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = "\n".join(lines)
    for words in ("PPO-ptx", "57.0%", "54.0-60.0%", "corpus perplexity", "66.0%"):
        assert words in whole
    assert "-0.00" not in whole


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


def world_prompt(world: World) -> tuple[str, str]:
    prompt = "what is the capital of norland ? answer :"
    return prompt, world.ideal(prompt, world.rng("test"))


def test_optimisation_curve_judges_the_validation_samples(tmp_path: Path) -> None:
    world = World(1)
    prompt, right = world_prompt(world)
    rows = [
        {"iteration": 0, "prompt": prompt, "response": "", "score": -1.0, "kl": 0.0},
        {"iteration": 8, "prompt": prompt, "response": "stale", "score": 9.0, "kl": 9.0},
        {"iteration": 8, "prompt": prompt, "response": right, "score": 1.0, "kl": 0.5},
    ]
    path = tmp_path / "ppo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, last = optimisation_curve(path, world)
    assert (last["score"], last["kl"]) == (1.0, 0.5)
    assert last["gold"] == pytest.approx(world.judge(prompt, right).score)
    assert first["gold"] < last["gold"]


def test_one_sample_of_each_use_case() -> None:
    rows = [{"use_case": "a", "n": 1}, {"use_case": "b", "n": 2}, {"use_case": "a", "n": 3}]
    assert [row["n"] for row in one_per_use_case(rows)] == [1, 2]


def test_report_from_a_folder_with_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    world_report(str(tmp_path))
    read((tmp_path / "report.html").read_text())
    assert "report.html" in capsys.readouterr().out
