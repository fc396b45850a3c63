"""results.json: everything the table, the page and W&B show, as plain values."""

import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.measures import Measure
from instructlit.evaluation.runner import Results

_PACKAGES = ("instructlit", "torch", "transformers", "tokenizers", "numpy", "lm_eval")


def as_json(results: Results) -> dict[str, Any]:
    """The results as plain values; a bound that is open is null."""
    return {
        "models": results.models,
        "baseline": results.baseline,
        "base": results.base,
        "measures": [_measure(m, task) for task, outcome in results.outcomes.items() for m in outcome.measures],
        "curves": [asdict(curve) for outcome in results.outcomes.values() for curve in outcome.curves],
        "notes": {task: outcome.notes for task, outcome in results.outcomes.items() if outcome.notes},
        "judges": results.judges,
        "failures": results.failures,
        "versions": versions(),
    }


def figure_row(figure: Figure) -> dict[str, float | int | None]:
    """A figure as plain values."""
    return {
        "value": _finite(figure.value),
        "low": _finite(figure.low),
        "high": _finite(figure.high),
        "n": figure.n,
    }


def versions() -> dict[str, str]:
    """The versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
        "figures": rows(measure.figures),
        "by": {group: rows(figures) for group, figures in measure.by.items()},
        "minus_base": {
            row: figure_row(figure) | {"significant": figure.differs} for row, figure in measure.differences.items()
        },
        "notes": measure.notes,
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
