"""How figures are written, and the tables in the terminal: one row per model, one column per measure."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from textwrap import wrap
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.measures import Measure
from instructlit.evaluation.runner import Results
from instructlit.terminal import harmless

T = TypeVar("T")

WIDTH = 5  # measures side by side
ABOVE, BESIDE = 20, 15  # most characters per line of a measure's title, above its figures and beside them


def number(measure: Measure, value: float, signed: bool = False) -> str:
    """A value in the measure's own form."""
    if not math.isfinite(value):
        return "-"
    text = measure.form.format(abs(value) if abs(value) < 5e-7 else value)
    return f"+{text}" if signed and value > 0 else text


def interval(measure: Measure, figure: Figure, signed: bool = False) -> str:
    """The 95 % interval; "" where it is a point, "open" where it is unbounded."""
    if figure.low == figure.high:
        return ""
    if not (math.isfinite(figure.low) and math.isfinite(figure.high)):
        return "open"
    return f"{number(measure, figure.low, signed)} to {number(measure, figure.high, signed)}"


def by_table(results: Results) -> dict[str, list[Measure]]:
    """The measures of each table, those of models first."""
    found: dict[str, list[Measure]] = {"models": []}
    for outcome in results.outcomes.values():
        for measure in outcome.measures:
            found.setdefault(measure.rows, []).append(measure)
    return {rows: measures for rows, measures in found.items() if measures}


def rows_of(rows: str, measures: Sequence[Measure], results: Results) -> list[str]:
    """The rows of a table, in order."""
    if rows == "models":
        return list(results.models)
    return list(dict.fromkeys(row for measure in measures for row in measure.figures))


def print_results(results: Results, turned: bool = False) -> None:
    """Every table, where models are worse than the base, and what could not be measured.

    Args:
        results: all of it.
        turned: one column per model and one row per measure.
    """
    console = Console()
    for rows, measures in by_table(results).items():
        names = rows_of(rows, measures, results)
        if turned:
            _print_wide(console, names, partial(_turned, rows, results, measures))
        else:
            _print_wide(console, measures, partial(_table, rows, results, names), WIDTH)
    for line in losses(results):
        console.print(escape(line), highlight=False)
    for task, outcome in results.outcomes.items():
        notes = [*outcome.notes, *(note for measure in outcome.measures for note in measure.notes)]
        for note in dict.fromkeys(notes):
            console.print(escape(f"{task}: {note}"), highlight=False)
    for name, judge in results.judges.items():
        for state in ("unreadable", "pending"):
            if judge[state]:
                console.print(escape(f"judge {name}: {judge[state]} verdicts {state}, which are not counted"))
    for what, why in results.failures.items():
        console.print(escape(harmless(f"not measured: {what}: {why}")), style="yellow", highlight=False)


def losses(results: Results) -> list[str]:
    """One sentence for every figure that is significantly worse than the base's."""
    found = []
    for outcome in results.outcomes.values():
        for measure in outcome.measures:
            for row, figure in measure.differences.items():
                worse = figure.high < 0 if measure.better == "up" else figure.low > 0
                if worse and measure.better:
                    found.append(
                        f"{results.title(row)} loses to {results.title(results.base)} on {measure.title}: "
                        f"{number(measure, figure.value, True)} "
                        f"({interval(measure, figure, True)}, n = {figure.n})"
                    )
    return found


def _print_wide(
    console: Console, columns: Sequence[T], table: Callable[[Sequence[T]], Table], most: int | None = None
) -> None:
    """A table with all columns, or several below each other if they exceed the terminal's width or `most`."""
    unlimited = console.options.update(width=sys.maxsize)
    while columns:
        count = min(len(columns), most or len(columns))
        while count > 1 and console.measure(table(columns[:count]), options=unlimited).maximum > console.width:
            count -= 1
        console.print(table(columns[:count]))
        columns = columns[count:]


def _table(rows: str, results: Results, names: Sequence[str], measures: Sequence[Measure]) -> Table:
    table = _empty(rows, [_heading(measure, ABOVE) for measure in measures], "value, 95 % interval, count")
    for name in names:
        table.add_row(escape(results.title(name)), *(_cell(measure, name) for measure in measures))
    return table


def _turned(rows: str, results: Results, measures: Sequence[Measure], names: Sequence[str]) -> Table:
    table = _empty(rows, [escape(results.title(name)) for name in names], "value and 95 % interval")
    for measure in measures:
        table.add_row(_heading(measure, BESIDE), *(_cell(measure, name, counted=False) for name in names))
    return table


def _empty(rows: str, headings: Sequence[str], caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    table.add_column(rows, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _heading(measure: Measure, width: int) -> str:
    """The title of a measure, in lines that leave room for the figures."""
    return "\n".join(wrap(escape(measure.title) + arrow(measure), width, break_long_words=False))


def _cell(measure: Measure, name: str, counted: bool = True) -> str:
    figure = measure.figures.get(name)
    if figure is None:
        return "-"
    own = interval(measure, figure) if counted else narrow(measure, figure)
    lines = [number(measure, figure.value), own, f"n {figure.n}" if counted and figure.n else ""]
    return "\n".join(line for line in lines if line)


def narrow(measure: Measure, figure: Figure) -> str:
    """The interval as 54.0-60.0%, where no sign is in the way."""
    text = interval(measure, figure)
    return text if figure.low < 0 else text.replace("% to ", "-").replace(" to ", "-")


def arrow(measure: Measure) -> str:
    """Which way is better."""
    return {"up": " ↑", "down": " ↓"}.get(measure.better, "")
