"""results.json: everything the table, the page and W&B show, as plain values."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.measures import Curve, Measure, Outcome
from instructlit.evaluation.runner import Results
from instructlit.models.lineage import versions


def as_json(results: Results) -> dict[str, Any]:
    """The results as plain values; an open bound is null."""
    return {
        "suite": results.suite,
        "seed": results.seed,
        "models": results.models,
        "titles": results.titles,
        "baseline": results.baseline,
        "base": results.base,
        "measures": [_measure(m, task) for task, outcome in results.outcomes.items() for m in outcome.measures],
        "curves": [{"task": t, **asdict(curve)} for t, outcome in results.outcomes.items() for curve in outcome.curves],
        "samples": {task: outcome.samples for task, outcome in results.outcomes.items()},
        "notes": {task: outcome.notes for task, outcome in results.outcomes.items()},
        "judges": results.judges,
        "failures": results.failures,
        "versions": versions(),
    }


def from_json(told: Mapping[str, Any]) -> Results:
    """What `as_json` wrote, to draw its page again."""
    results = Results(**{f: told[f] for f in ("suite", "seed", "models", "titles", "baseline", "base")})
    results.judges, results.failures = told["judges"], told["failures"]
    for task, samples in told["samples"].items():
        outcome = Outcome(samples=samples, notes=told["notes"][task])
        outcome.curves = [_curve(row) for row in told["curves"] if row["task"] == task]
        outcome.measures = [_read(row) for row in told["measures"] if row["task"] == task]
        results.outcomes[task] = outcome
    return results


def figure_row(figure: Figure) -> dict[str, float | int | None]:
    """A figure as plain values."""
    return {
        "value": _finite(figure.value),
        "low": _finite(figure.low),
        "high": _finite(figure.high),
        "n": figure.n,
    }


def _measure(measure: Measure, task: str) -> dict[str, Any]:
    def rows(figures: Mapping[str, Figure]) -> dict[str, Any]:
        return {row: figure_row(figure) for row, figure in figures.items()}

    return {
        "name": measure.name,
        "task": task,
        "title": measure.title,
        "meaning": measure.meaning,
        "better": measure.better,
        "rows": measure.rows,
        "form": measure.form,
        "chance": measure.chance,
        "figures": rows(measure.figures),
        "by": {group: rows(figures) for group, figures in measure.by.items()},
        "minus_base": {
            row: figure_row(figure) | {"significant": figure.differs} for row, figure in measure.differences.items()
        },
        "notes": measure.notes,
    }


def _read(row: Mapping[str, Any]) -> Measure:
    plain = {name: row[name] for name in ("name", "title", "meaning", "form", "better", "notes", "rows", "chance")}
    groups = {group: _figures(own) for group, own in row["by"].items()}
    return Measure(**plain, figures=_figures(row["figures"]), by=groups, differences=_figures(row["minus_base"]))


def _figures(rows: Mapping[str, Any]) -> dict[str, Figure]:
    def number(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    return {
        name: Figure(
            number(row["value"], math.nan), number(row["low"], -math.inf), number(row["high"], math.inf), row["n"]
        )
        for name, row in rows.items()
    }


def _curve(row: Mapping[str, Any]) -> Curve:
    series = {name: [(x, y) for x, y in points] for name, points in row["series"].items()}
    return Curve(row["title"], row["x"], row["y"], series, row["diagonal"])


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
