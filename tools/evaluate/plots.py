"""The report's plots: every measure as points with intervals, and the curves that tasks draw."""

import math
import re
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from instructlit.evaluation.measures import Curve, Measure
from instructlit.evaluation.runner import Results
from instructlit.tools.evaluate.table import number
from instructlit.tools.reporting.svg import INK, STYLE, plt, svg

COLOURS = ("#8a8f98", "#b08f5c", "#3f8fd2", "#e07b39", "#2fa36b", "#a05fb5", "#c9504c", "#4aa3a3")
"""Readable on white and on near-black."""


def figure_plot(measure: Measure, rows: Sequence[str], results: Results) -> str:
    """A measure's figures with their intervals, one line a row."""
    shown = [row for row in rows if row in measure.figures and math.isfinite(measure.figures[row].value)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 0.9 + 0.42 * max(len(shown), 1)), layout="constrained")
        for place, row in enumerate(shown):
            found = measure.figures[row]
            colour = _colour(results.title(row), titles(results), place)
            if math.isfinite(found.low) and math.isfinite(found.high):
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.4, alpha=0.55)
            axes.plot([found.value], [place], "o", color=colour, markersize=5.5)
            axes.annotate(
                number(measure, found.value), (found.value, place), (0, 5), textcoords="offset points", ha="center"
            )
        if measure.chance is not None:
            axes.axvline(measure.chance, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(shown)), [_plain(results.title(row)) for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(measure, value)))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
        axes.set_title(_plain(measure.title))
        return svg(figure, "measure-" + re.sub(r"\W+", "-", measure.name))


def curve(drawn: Curve, models: Sequence[str] = (), markers: bool = True, whole: bool = False) -> str:
    """A curve. A series named as one of `models` has that model's colour; `whole` is for shares over counts."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
        if drawn.diagonal:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for place, (name, points) in enumerate(drawn.series.items()):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            colour = _colour(name, models, len(models) + place)
            axes.plot(xs, ys, "o-" if markers else "-", markersize=3.5, label=_plain(name), color=colour)
        axes.set_title(_plain(drawn.title))
        axes.set_xlabel(_plain(drawn.x))
        axes.set_ylabel(_plain(drawn.y))
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(drawn.series) > 1:
            axes.legend()
        return svg(figure, "curve-" + re.sub(r"\W+", "-", drawn.title))


def titles(results: Results) -> list[str]:
    """The models' names on the page, in the order that gives each its colour."""
    return [results.title(name) for name in results.models]


def _colour(title: str, models: Sequence[str], place: int) -> str:
    """The same colour for a model everywhere on the page; other colours for other series."""
    return COLOURS[(models.index(title) if title in models else place) % len(COLOURS)]


def _plain(text: str) -> str:
    """A name shown literally: a dollar sign would begin a formula in matplotlib."""
    return text.replace("$", r"\$")
