"""The report as one HTML page without scripts. Whatever a model or a file said is escaped before it enters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from instructlit.tools.quickstart.verdict import Criterion
from instructlit.tools.reporting.html import document, figures
from instructlit.tools.world.result_table import TITLES, cell, columns, interval

_CHIPS = (
    ("attempted", "did the task", "wrong task"),
    ("constraints", "kept the constraint", "broke the constraint"),
    ("grounded", "within the context", "made up"),
    ("truthful", "true", "misconception"),
)
"""Key of a verdict, what True says, what False says; None says nothing."""


@dataclass
class Page:
    """Everything the page shows, already measured."""

    results: Mapping[str, Any]
    criteria: Sequence[Criterion]
    preference: str  # SVG, as are the next two
    optimisation: Sequence[str] = ()
    training: Sequence[str] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    commands: Sequence[Mapping[str, Any]] = ()
    configs: Mapping[str, str] = field(default_factory=dict)  # path in the run folder -> text
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: str = "runs/quickstart"

    def html(self) -> str:
        """The whole page."""
        sections = [
            self._head(),
            self._table(),
            self._verdict(),
            self._plots(),
            self._samples(),
            self._commands(),
            self._times(),
        ]
        return document(f"instructlit quickstart, seed {self.results['seed']}", sections)

    def _head(self) -> str:
        results = self.results
        model = {row["name"]: row for row in results["models"]}["ppo_ptx"]
        held = sum(c.holds for c in self.criteria)
        facts = [
            (f"{model['preference']:.0%}", f"of PPO-ptx answers preferred to SFT's ({escape(interval(model))})"),
            (f"{results['reward_accuracy']:.1%}", "of held-out pairs ordered right by the reward model"),
            (f"{results['labeler_agreement']:.1%}", "agreement between two labelers on such pairs"),
            (f"{held} of {len(self.criteria)}", "claims hold on this seed"),
        ]
        items = "".join(f"<li><b>{number}</b><span>{text}</span></li>" for number, text in facts)
        links = (("results", "Results"), ("verdict", "Verdict"), ("plots", "Plots"), ("samples", "Samples"))
        links += (("commands", "Commands"), ("times", "Times and versions"))
        nav = "".join(f'<a href="#{target}">{title}</a>' for target, title in links)
        return (
            "<h1>The InstructGPT recipe, start to finish</h1>\n"
            f'<p class="soft">instructlit quickstart, seed {escape(str(results["seed"]))}</p>\n'
            "<p>A tiny language model was pretrained on a raw corpus, fine-tuned on demonstrations (SFT), and then "
            "trained by PPO against a reward model that learned from simulated labelers' rankings; PPO-ptx mixes "
            "pretraining gradients in. All of it happens in a small made-up world whose truth is known, so that a gold "
            "scorer, which no model is trained on, can say how well each answer does what its prompt asked.</p>\n"
            f"<nav>{nav}</nav>\n<ul class='facts'>{items}</ul>"
        )

    def _table(self) -> str:
        models, heads = self.results["models"], columns(self.results)
        best = {head: _best(models, head, column) for head, column in heads}
        head_row = "".join(f"<th scope='col'>{escape(head)}</th>" for head, _ in heads)
        body = []
        for model in models:
            cells = []
            for head, column in heads:
                text = escape(cell(model, head, column))
                small = interval(model) if column.key == "preference" else ""
                extra = f"<small>{escape(small)}</small>" if small else ""
                mark = " class='best'" if text == best[head] else ""
                cells.append(f"<td{mark}>{text}{extra}</td>")
            focus = " class='focus'" if model["name"] == "ppo_ptx" else ""
            title = escape(TITLES.get(str(model["name"])) or str(model["name"]))
            body.append(f"<tr{focus}><th scope='row'>{title}</th>{''.join(cells)}</tr>")
        seen: dict[str, str] = {}
        for head, column in heads:
            seen.setdefault("corpus tasks" if column.key == "tasks" else head, column.meaning)
        meanings = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in seen.items())
        counts = ", ".join(f"{value} {escape(name)}" for name, value in self.results.get("counts", {}).items())
        return (
            "<h2 id='results'>Results</h2>\n"
            "<p>Every model answers the same test prompts, which no stage has seen. PPO and PPO-ptx are the moving "
            "averages of their weights. The best number of a column is bold.</p>\n"
            f"<div class='scroll'><table><thead><tr><th>model</th>{head_row}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table></div>\n"
            + (f"<p class='soft'>Measured on {counts}.</p>\n" if counts else "")
            + f"<h3>What the columns say</h3>\n<dl class='columns'>{meanings}</dl>"
        )

    def _verdict(self) -> str:
        items = []
        for c in self.criteria:
            word, mark = ("Holds.", "") if c.holds else ("Falls short.", " class='no'")
            items.append(f"<li{mark}><b>{word}</b>{_sentence(c.claim)}<span>{escape(c.numbers)}</span></li>")
        short = [c.claim for c in self.criteria if not c.holds]
        text = (
            "Everything the recipe should show is there on this seed."
            if not short
            else f"This seed falls short in {len(short)} of {len(self.criteria)} claims; one seed is one draw, and "
            "<code>instructlit quickstart --seeds 11 12 13 14 15</code> judges five."
        )
        return f"<h2 id='verdict'>What this seed shows</h2>\n<p>{text}</p>\n<ul class='verdict'>{''.join(items)}</ul>"

    def _plots(self) -> str:
        parts = ["<h2 id='plots'>Plots</h2>"]
        caption = "How often a model's answer beats SFT's. Bars are 95 % intervals, the dashed line is chance."
        parts.append(f"<figure class='wide'>{self.preference}<figcaption>{caption}</figcaption></figure>")
        if self.optimisation:
            parts.append(
                "<h3>What the reward model sees, and what is so</h3>\n<p>Both PPO runs, answering held-out prompts as "
                "training moves them away from SFT. Where the reward model's score keeps rising and the gold score "
                "falls, the policy has found the reward model's mistakes.</p>"
            )
            parts.append(figures(self.optimisation))
        if self.training:
            parts.append(f"<h3>Training curves</h3>{figures(self.training)}")
        return "\n".join(parts)

    def _samples(self) -> str:
        if not self.samples:
            return ""
        cards = "".join(_sample(row) for row in self.samples)
        return (
            "<h2 id='samples'>Samples side by side</h2>\n<p>For each use case the first test prompt, with the first "
            "answer each model drew: not chosen by eye. The mark is the gold scorer's, 1 to 7.</p>\n" + cards
        )

    def _commands(self) -> str:
        if not self.commands:
            return ""
        parts = []
        for row in self.commands:
            files = "".join(
                f"<p class='soft'>{escape(path)}</p><pre>{escape(self.configs[path])}</pre>"
                for path in row["configs"]
                if path in self.configs
            )
            shown = f"<summary>{_sentence(row['title'])}<br><code>{escape(row['command'])}</code></summary>"
            parts.append(
                f"<details>{shown}{files}</details>" if files else f"<details>{shown}<p>No config.</p></details>"
            )
        return (
            "<h2 id='commands'>The commands that made this page</h2>\n<p>Run in order inside the run folder; each can "
            f"be taken away and used on its own. Open one to see its config.</p>\n<pre>cd {escape(self.folder)}</pre>\n"
            + "".join(parts)
        )

    def _times(self) -> str:
        seconds = self.results.get("seconds", {})
        time_rows = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{v:.0f} s</td></tr>" for k, v in seconds.items())
        total = f"<tr><th scope='row'>together</th><td>{sum(seconds.values()):.0f} s</td></tr>" if seconds else ""
        version_rows = "".join(
            f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.versions.items()
        )
        return (
            "<h2 id='times'>Times and versions</h2>\n<div class='plots'>"
            f"<div class='scroll'><table><tbody>{time_rows}{total}</tbody></table></div>"
            f"<div class='scroll'><table><tbody>{version_rows}</tbody></table></div></div>"
        )


def _sample(row: Mapping[str, Any]) -> str:
    answers = []
    for answer in row["answers"]:
        title = escape(TITLES.get(str(answer["model"])) or str(answer["model"]))
        chips = [
            f"<span class='chip {'yes' if answer[key] else 'no'}'>{yes if answer[key] else no}</span>"
            for key, yes, no in _CHIPS
            if answer.get(key) is not None
        ]
        if answer.get("rude"):
            chips.append("<span class='chip no'>rude</span>")
        text = escape(answer["text"]) or "<span class='soft'>(nothing)</span>"
        answers.append(
            f"<div class='answer'><h4>{title}<span>{answer['rating']} / 7</span></h4>"
            f"<p>{text}</p>{''.join(chips)}</div>"
        )
    case = escape(str(row.get("use_case") or ""))
    return (
        f"<article class='sample'><header><small>{case}</small>{escape(row['prompt'])}</header>"
        f"<div class='answers'>{''.join(answers)}</div></article>"
    )


def _sentence(text: str) -> str:
    """Escaped, with a capital and a full stop."""
    return escape(text[:1].upper() + text[1:] + ".")


def _best(models: Sequence[Mapping[str, Any]], head: str, column: Any) -> str:
    """The text of the best cell of a column, nothing where no direction is better."""
    if not column.better:
        return ""

    def number(model: Mapping[str, Any]) -> float | None:
        return (
            model.get("tasks", {}).get(head.removeprefix("task: ")) if column.key == "tasks" else model.get(column.key)
        )

    with_number = [model for model in models if number(model) is not None]
    if not with_number:
        return ""
    pick = max if column.better == "up" else min
    return escape(cell(pick(with_number, key=number), head, column))  # type: ignore[arg-type]
