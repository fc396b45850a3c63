"""The report as one HTML page without scripts. All text from models and files is escaped."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from instructlit.evaluation.measures import Measure, Outcome
from instructlit.evaluation.runner import Results
from instructlit.models.lineage import versions
from instructlit.tools.evaluate import plots
from instructlit.tools.evaluate.table import arrow, by_table, interval, losses, narrow, number, rows_of
from instructlit.tools.reporting.html import document, figures

_HEADS = {"models": "Results", "reward models": "Reward models", "judges": "Judges"}


class Section(ABC):
    """An additional part of the page; a suite names it by `class_path`."""

    place: Literal["head", "table", "plots", "end"] = "end"
    """In place of the page's own head, or after its first table, its plots or everything."""

    @abstractmethod
    def html(self, results: Results, folder: Path) -> str:
        """Its HTML, escaped; "" where there is nothing to show.

        Args:
            results: all that was measured.
            folder: the folder of the results.
        """


def report(results: Results, folder: Path, sections: Sequence[Section] = ()) -> str:
    """The whole page."""

    def extra(place: str) -> list[str]:
        return [section.html(results, folder) for section in sections if section.place == place]

    parts = extra("head") or [_head(results)]
    first, *others = [_table(rows, measures, results) for rows, measures in by_table(results).items()] or [""]
    parts += [first, *extra("table"), *others, _plots(results), *extra("plots")]
    parts += [_samples(name, outcome, results) for name, outcome in results.outcomes.items()]
    parts += [_tax(results), _groups(results), _meanings(results), _missing(results), *extra("end"), _versions()]
    return document(f"instructlit evaluate: {results.suite}", parts)


def _head(results: Results) -> str:
    models = results.models.items()
    rows = "".join(f"<dt>{escape(results.title(name))}</dt><dd>{escape(told)}</dd>" for name, told in models)
    roles = (
        f"; preferences against {escape(results.title(results.baseline))}, losses against "
        f"{escape(results.title(results.base))}"
    )
    return (
        "<h1>What alignment bought, and what it cost</h1>\n"
        f"<p class='soft'>instructlit evaluate, suite {escape(results.suite)}{roles if models else ''}</p>\n"
        f"<dl class='columns'>{rows}</dl>"
    )


def _table(rows: str, measures: Sequence[Measure], results: Results) -> str:
    names = rows_of(rows, measures, results)
    heads = "".join(f"<th scope='col'>{escape(m.title)}{arrow(m)}</th>" for m in measures)
    body = []
    for name in names:
        cells = "".join(_cell(measure, name) for measure in measures)
        body.append(f"<tr><th scope='row'>{escape(results.title(name))}</th>{cells}</tr>")
    return (
        f"<h2 id='{escape(rows)}'>{escape(_HEADS.get(rows, rows))}</h2>\n"
        "<p>Every figure with its 95 % interval and the number of prompts (or pairs) behind it. The best of each "
        f"column is bold.</p>\n{_grid(heads, body)}"
    )


def _grid(heads: str, rows: Sequence[str]) -> str:
    body = "".join(rows)
    return f"<div class='scroll'><table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(measure: Measure, row: str, group: str | None = None) -> str:
    own = measure.figures if group is None else measure.by.get(group, {})
    figure = own.get(row)
    if figure is None:
        return "<td>-</td>"
    best = _best(measure) if group is None else None
    mark = " class='best'" if best is not None and figure.value == best else ""
    small = [narrow(measure, figure), f"n {figure.n}" if figure.n else ""]
    told = "".join(f"<small>{escape(text)}</small>" for text in small if text)
    return f"<td{mark}>{escape(number(measure, figure.value))}{told}</td>"


def _tax(results: Results) -> str:
    """Each model minus the base, over the same prompts."""
    measures = [m for o in results.outcomes.values() for m in o.measures if m.differences]
    if not measures:
        return ""
    names = [name for name in results.models if name != results.base]
    rows = []
    for measure in measures:
        cells = []
        for name in names:
            figure = measure.differences.get(name)
            if figure is None:
                cells.append("<td>-</td>")
                continue
            mark = " class='best'" if figure.differs else ""
            cells.append(
                f"<td{mark}>{escape(number(measure, figure.value, True))}"
                f"<small>{escape(interval(measure, figure, True))}</small></td>"
            )
        rows.append(f"<tr><th scope='row'>{escape(measure.title)}{arrow(measure)}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th scope='col'>{escape(results.title(name))}</th>" for name in names)
    base, found = escape(results.title(results.base)), losses(results)
    text = (
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>"
        if found
        else "<p>No model is significantly worse than the base on any measure.</p>"
    )
    return (
        f"<h2 id='tax'>Minus {base}</h2>\n<p>Each model minus {base} on the same "
        "prompts, with paired 95 % intervals. Bold where the interval excludes 0; for one measure in twenty that "
        f"happens by chance.</p>{text}{_grid(heads, rows)}"
    )


def _groups(results: Results) -> str:
    parts = []
    for measure in (m for o in results.outcomes.values() for m in o.measures if m.by):
        rows = list(dict.fromkeys(row for own in measure.by.values() for row in own))
        heads = "".join(f"<th scope='col'>{escape(results.title(row))}</th>" for row in rows)
        body = "".join(
            f"<tr><th scope='row'>{escape(group)}</th>{''.join(_cell(measure, row, group) for row in rows)}</tr>"
            for group in measure.by
        )
        parts.append(
            f"<details><summary>{escape(measure.title)}</summary><div class='scroll'><table><thead><tr><th></th>{heads}"
            f"</tr></thead><tbody>{body}</tbody></table></div></details>"
        )
    return f"<h2 id='groups'>By group</h2>{''.join(parts)}" if parts else ""


def _plots(results: Results) -> str:
    drawn = []
    for rows, measures in by_table(results).items():
        names = rows_of(rows, measures, results)
        drawn += [plots.figure_plot(measure, names, results) for measure in measures if measure.figures]
    drawn += [
        plots.curve(curve, plots.titles(results)) for outcome in results.outcomes.values() for curve in outcome.curves
    ]
    return f"<h2 id='plots'>Plots</h2>{figures(drawn)}" if drawn else ""


def _samples(task: str, outcome: Outcome, results: Results) -> str:
    if not outcome.samples:
        return ""
    cards = "".join(_sample(row, results) for row in outcome.samples)
    return f"<h2 id='samples-{escape(task)}'>Samples: {escape(task)}</h2><p>Chosen automatically.</p>{cards}"


def _sample(row: Mapping[str, Any], results: Results) -> str:
    answers = []
    for model, text in row["answers"].items():
        chips = "".join(map(_chip, row["marks"].get(model, [])))
        shown = escape(text) or "<span class='soft'>(empty)</span>"
        answers.append(f"<div class='answer'><h4>{escape(results.title(model))}</h4><p>{shown}</p>{chips}</div>")
    prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False)
    return (
        f"<article class='sample'><header><small>{escape(str(row.get('group') or ''))}</small>{escape(prompt)}</header>"
        f"<div class='answers'>{''.join(answers)}</div></article>"
    )


def _chip(mark: str | Sequence[Any]) -> str:
    if isinstance(mark, str):
        return f"<span class='chip'>{escape(mark)}</span>"
    words, good = mark
    return f"<span class='chip {'yes' if good else 'no'}'>{escape(words)}</span>"


def _meanings(results: Results) -> str:
    items = []
    for outcome in results.outcomes.values():
        for m in outcome.measures:
            notes = "".join(f"<br><small>{escape(note)}</small>" for note in m.notes)
            items.append(
                f"<dt>{escape(m.title)}</dt><dd>{escape(m.meaning)}<br><code>{escape(m.name)}</code>{notes}</dd>"
            )
    notes = [f"{task}: {note}" for task, outcome in results.outcomes.items() for note in outcome.notes]
    listed = "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""
    return (
        f"<h2 id='columns'>What the columns mean</h2><dl class='columns'>{''.join(items)}</dl>{listed}" if items else ""
    )


def _missing(results: Results) -> str:
    lines = [f"{what}: {why}" for what, why in results.failures.items()]
    for name, judge in results.judges.items():
        if judge["unreadable"]:
            said = f", such as: {judge['example']}" if judge["example"] else ""
            lines.append(
                f"judge {name} ({judge['title']}): {judge['unreadable']} verdicts could not be read and are not "
                f"counted{said}"
            )
        if judge["pending"]:
            lines.append(f"judge {name} ({judge['title']}): {judge['pending']} verdicts are pending")
    if not lines:
        return ""
    return (
        "<h2 id='missing'>What is not in these figures</h2><ul>"
        + "".join(f"<li>{escape(x)}</li>" for x in lines)
        + "</ul>"
    )


def _versions() -> str:
    rows = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in versions().items())
    return f"<h2 id='versions'>Versions</h2><div class='scroll'><table><tbody>{rows}</tbody></table></div>"


def _best(measure: Measure) -> float | None:
    values = [figure.value for figure in measure.figures.values()]
    if not measure.better or len(values) < 2:
        return None
    return max(values) if measure.better == "up" else min(values)
