"""The report's plots: every measure as points with intervals, and the curves that tasks draw."""

import math
import re
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from instructlit.evaluation.measures import Curve, Measure
from instructlit.tools.evaluate.table import number
from instructlit.tools.reporting.svg import INK, STYLE, plt, svg

COLOURS = ("#3f8fd2", "#e07b39", "#2fa36b", "#8a8f98", "#b08f5c", "#a05fb5", "#c9504c", "#4aa3a3")
"""Readable on white and on near-black."""


def figure_plot(measure: Measure, rows: Sequence[str]) -> str:
    """A measure's figures with their intervals, one line a row."""
    shown = [row for row in rows if row in measure.figures and math.isfinite(measure.figures[row].value)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 0.9 + 0.34 * max(len(shown), 1)), layout="constrained")
        for place, row in enumerate(shown):
            found = measure.figures[row]
            colour = COLOURS[place % len(COLOURS)]
            if math.isfinite(found.low) and math.isfinite(found.high):
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.4, alpha=0.55)
            axes.plot([found.value], [place], "o", color=colour, markersize=5.5)
        axes.set_yticks(range(len(shown)), [_plain(row) for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(measure, value)))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", visible=False)
        axes.set_title(_plain(measure.title))
        return svg(figure, "measure-" + re.sub(r"\W+", "-", measure.name))


def curve(drawn: Curve) -> str:
    """A task's curve."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
        if drawn.diagonal:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for place, (name, points) in enumerate(drawn.series.items()):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, marker="o", markersize=3.5, label=_plain(name), color=COLOURS[place % len(COLOURS)])
        axes.set_title(_plain(drawn.title))
        axes.set_xlabel(_plain(drawn.x))
        axes.set_ylabel(_plain(drawn.y))
        if len(drawn.series) > 1:
            axes.legend()
        return svg(figure, "curve-" + re.sub(r"\W+", "-", drawn.title))


def _plain(text: str) -> str:
    """Names as they are: a dollar sign begins a formula in matplotlib."""
    return text.replace("$", r"\$")
