"""What the report of a quickstart run shows besides the evaluation: claims, training curves, commands and times."""

import json
import os
import platform
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.measures import Curve
from instructlit.evaluation.runner import Results
from instructlit.tools.evaluate import plots
from instructlit.tools.evaluate.page import Section
from instructlit.tools.evaluate.results import as_json
from instructlit.tools.quickstart.attempt import Stamp
from instructlit.tools.quickstart.runner import started_by
from instructlit.tools.quickstart.verdict import Criterion, criteria
from instructlit.tools.reporting.html import figures
from instructlit.tools.world.run_folder import Points, logged, smoothed

LINKS = (
    ("models", "Results"),
    ("verdict", "Verdict"),
    ("plots", "Plots"),
    ("training", "Training"),
    ("samples-answers", "Samples"),
    ("tax", "Alignment tax"),
    ("commands", "Commands"),
    ("times", "Times"),
)


class Head(Section):
    """What was done, and the four main figures."""

    place = "head"

    def html(self, results: Results, folder: Path) -> str:
        told = as_json(results)
        claims = _claims(results)
        facts = [f"<li><b>{number}</b><span>{text}</span></li>" for number, text in _facts(told, claims)]
        nav = "".join(f'<a href="#{target}">{title}</a>' for target, title in LINKS)
        return (
            "<h1>The InstructGPT recipe, start to finish</h1>\n"
            f'<p class="soft">instructlit quickstart, seed {escape(str(results.seed))}</p>\n'
            "<p>A tiny language model was pretrained on a raw corpus, fine-tuned on demonstrations (SFT), and then "
            "trained by PPO against a reward model that learned from simulated labelers' rankings; PPO-ptx mixes "
            "pretraining gradients in. All of it happens in a small made-up world whose truth is known, so that a gold "
            "scorer, which no model is trained on, can say how well each answer does what its prompt asked. For PPO "
            "and PPO-ptx the moving averages of the weights are evaluated.</p>\n"
            f"<nav>{nav}</nav>\n<ul class='facts'>{''.join(facts)}</ul>"
        )


class Claims(Section):
    """What the recipe must show, and whether this seed does."""

    place = "table"

    def html(self, results: Results, folder: Path) -> str:
        claims = _claims(results)
        if not claims:
            return ""
        items = []
        for c in claims:
            word, mark = ("Holds.", "") if c.holds else ("Fails.", " class='no'")
            items.append(f"<li{mark}><b>{word}</b>{_sentence(c.claim)}<span>{escape(c.numbers)}</span></li>")
        short = [c.claim for c in claims if not c.holds]
        text = (
            "On this seed the recipe shows everything that it should."
            if not short
            else f"This seed fails {len(short)} of {len(claims)} claims; one seed is a single draw, and "
            "<code>instructlit quickstart --seeds 11 12 13 14 15</code> judges five."
        )
        return f"<h2 id='verdict'>What this seed shows</h2>\n<p>{text}</p>\n<ul class='verdict'>{''.join(items)}</ul>"


class Training(Section):
    """The training curves of every stage, from the logs of the run."""

    place = "plots"

    def html(self, results: Results, folder: Path) -> str:
        drawn = []
        for title, series, x in _panels(folder / "logs", results):
            filled = {name: smoothed(points) for name, points in series.items() if points}
            if filled:
                drawn.append(plots.curve(Curve(title, x, "", filled), plots.titles(results), markers=False))
        return f"<h2 id='training'>Training curves</h2>{figures(drawn)}" if drawn else ""


class Commands(Section):
    """The commands that made the run, each with its config."""

    def html(self, results: Results, folder: Path) -> str:
        path = folder / "commands.json"
        if not path.exists():
            return ""
        shown = "".join(_command(row, folder) for row in json.loads(path.read_text(encoding="utf-8")))
        place = "/".join(folder.resolve().parts[-2:])
        return (
            "<h2 id='commands'>The commands that made this page</h2>\n<p>Run in order inside the run folder; each can "
            f"also be run on its own. Open one to see its config.</p>\n<pre>cd {escape(place)}</pre>\n"
            f"{shown}"
        )


class Times(Section):
    """The seconds of each stage, and the machine."""

    def html(self, results: Results, folder: Path) -> str:
        seconds: dict[str, float] = {}
        for path in sorted((folder / "stamps").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            if (stamp := Stamp.load(path)) is not None:
                seconds[path.stem] = stamp.seconds
                if not stamp.finished and started_by(
                    folder
                ):  # the stage that draws this page; it was stamped at its start
                    seconds[path.stem] += time.time() - path.stat().st_mtime
        rows = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{v:.0f} s</td></tr>" for k, v in seconds.items())
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        return (
            f"<h2 id='times'>Times</h2>\n<p class='soft'>On {escape(machine)}. PPO and PPO-ptx run side by side.</p>"
            f"<div class='scroll'><table><tbody>{rows}</tbody></table></div>"
            if rows
            else ""
        )


def _claims(results: Results) -> list[Criterion]:
    """The claims; none if something that they depend on was not measured."""
    try:
        return criteria(as_json(results))
    except KeyError:
        return []


def _facts(told: Mapping[str, Any], claims: list[Criterion]) -> list[tuple[str, str]]:
    """The figures at the top that were measured."""
    measures = {m["name"]: m["figures"] for m in told["measures"]}
    found = []
    if own := measures.get("preference/gold/win_rate", {}).get("ppo_ptx"):
        figure = Figure(own["value"], own["low"], own["high"], own["n"])
        text = f"of PPO-ptx answers preferred to SFT's ({figure.low:.1%} to {figure.high:.1%})"
        found.append((f"{figure.value:.0%}", text))
    if own := measures.get("reward_model/accuracy", {}).get("reward"):
        found.append((f"{own['value']:.1%}", "of held-out pairs ordered correctly by the reward model"))
    if own := measures.get("world/labeler_agreement", {}).get("labelers"):
        found.append((f"{own['value']:.1%}", "agreement between two labelers on such pairs"))
    if claims:
        found.append((f"{sum(c.holds for c in claims)} of {len(claims)}", "claims hold on this seed"))
    return found


def _panels(logs: Path, results: Results) -> list[tuple[str, dict[str, Points], str]]:
    def stage(name: str, metric: str) -> dict[str, Points]:
        splits = {"training": "train", "held out": "val"}
        return {label: logged(logs / name, f"{name}/{split}/{metric}") for label, split in splits.items()}

    def both(metric: str) -> dict[str, Points]:
        return {results.title(name): logged(logs / name, metric, x="ppo/episodes") for name in ("ppo", "ppo_ptx")}

    return [
        ("pretraining loss", stage("pretrain", "loss"), "step"),
        ("SFT loss", stage("sft", "loss"), "step"),
        ("reward model's accuracy", stage("reward", "accuracy"), "step"),
        ("PPO: reward model's score", both("ppo/objective/score"), "episodes"),
        ("PPO: KL from SFT (nats)", both("ppo/objective/kl"), "episodes"),
        ("PPO: entropy a token (nats)", both("ppo/policy/entropy"), "episodes"),
    ]


def _command(row: Mapping[str, Any], folder: Path) -> str:
    configs = [(name, folder / name) for name in row["configs"]]
    files = "".join(
        f"<p class='soft'>{escape(name)}</p><pre>{escape(path.read_text(encoding='utf-8'))}</pre>"
        for name, path in configs
        if path.is_file()
    )
    shown = f"<summary>{_sentence(row['title'])}<br><code>{escape(row['command'])}</code></summary>"
    return f"<details>{shown}{files or '<p>No config.</p>'}</details>"


def _sentence(text: str) -> str:
    """Escaped, with a capital and a full stop."""
    return escape(text[:1].upper() + text[1:] + ".")
