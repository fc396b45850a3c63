"""The result of a task: measures with a figure for every row, the samples behind them, and curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instructlit.errors import UserError
from instructlit.evaluation import intervals
from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.judging import Desk
from instructlit.evaluation.requests import Answer, Reply


@dataclass
class Study:
    """All that a task can use when it measures.

    Args:
        models: the names of the models, in the order of the table.
        replies: for each model the replies to the task's requests, in their order; None if there is none.
        desk: asks the judges.
        baseline: the model that preferences are measured against.
        base: the model that the alignment tax is measured from.
        seed: seed of the resampling and of other random choices.
        further: by model the replies to `Task.further`.
        titles: a model's name in the report, if it differs.
    """

    models: list[str]
    replies: Mapping[str, Sequence[Reply | None]]
    desk: Desk
    baseline: str = ""
    base: str = ""
    seed: int = 0
    further: Mapping[str, Sequence[Reply | None]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)

    def title(self, model: str) -> str:
        """A model's name in the report."""
        return self.titles.get(model, model)

    def texts(self, model: str, start: int = 0, stop: int | None = None) -> list[str | None]:
        """First answers of a model to the requests from `start` up to `stop`; None if there is none."""
        return [r.text if isinstance(r, Answer) else None for r in self.replies[model][start:stop]]

    def ended(self, model: str) -> list[bool]:
        """Whether each of a model's first answers ended with EOS; True if unknown."""
        return [r.ends[0] if isinstance(r, Answer) else True for r in self.replies[model]]


@dataclass
class Measure:
    """One column: a figure for every row of its table.

    Args:
        name: its path, such as `truthfulqa/mc1`.
        title: the column's head.
        meaning: one or two sentences: what was counted, and who judged it.
        form: format of a number, for str.format.
        better: "up", "down" or "".
        figures: by row; a row without a figure is left out.
        by: group (a use case, a kind of instruction), then row.
        differences: each row minus the base, over the same prompts.
        notes: what a reader must know about the figures, such as how many were not judged.
        rows: what the rows are: "models", "reward models", "judges", or the name of a separate table.
        chance: the value for no preference or pure guessing, a dashed line in the plot.
    """

    name: str
    title: str
    meaning: str
    form: str = "{:.3f}"
    better: str = "up"
    figures: dict[str, Figure] = field(default_factory=dict)
    by: dict[str, dict[str, Figure]] = field(default_factory=dict)
    differences: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: str = "models"
    chance: float | None = None


@dataclass
class Curve:
    """A plot with one line per series."""

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]
    diagonal: bool = False  # a dashed line where x equals y


@dataclass
class Outcome:
    """The result of a task.

    Args:
        measures: its columns.
        samples: rows for people to read: `prompt`, `answers` by model, and `marks` by model: short labels, or
            labels with whether they are good.
        curves: plots.
        notes: about the task as a whole.
        files: texts to be written beside the results, by file name: rows for people to judge, verdicts row by row.
    """

    measures: list[Measure] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


PERCENT = "{:.1%}"
Row = Sequence[float | None]


def measured(
    study: Study,
    measure: Measure,
    values: Mapping[str, Row],
    *,
    weights: Mapping[str, Sequence[float]] | None = None,
    share: bool = False,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    groups: Sequence[str | None] | None = None,
) -> Measure:
    """`measure` with figures from one value per unit (prompt, pair, ...) and model.

    Args:
        study: gives the base and the seed.
        measure: the column to fill.
        values: for each row (U,) values, or numerators if there are weights; None is left out.
        weights: for each row (U,) denominators, for a ratio of sums.
        share: the values are successes, halves allowed: Wilson's interval and Bonett and Price's, else a bootstrap.
        transform: transform of a ratio, such as exp.
        groups: (U,) the group of each unit, for figures by group.
    """
    if study.desk.planning:
        return measure  # the figures are not used, and resampling takes time
    numbers = {row: _numbers(own) for row, own in values.items()}
    # a numerator that is left out has no weight
    made = {
        row: np.where(np.isfinite(own), 1.0 if weights is None else np.asarray(weights[row], dtype=float), 0.0)
        for row, own in numbers.items()
    }
    numbers = {row: np.nan_to_num(own) for row, own in numbers.items()}
    broken = {row: sum(v is not None and not math.isfinite(v) for v in own) for row, own in values.items()}
    noted(measure, broken, "non-finite values, left out")

    def figure(row: str, chosen: np.ndarray) -> Figure | None:
        a, b = numbers[row][chosen], made[row][chosen]
        if not (b > 0).any():
            return None
        return intervals.share(a, b) if share else intervals.ratio(a, b, study.seed, transform)

    everything = np.ones(len(next(iter(numbers.values()), [])), dtype=bool)
    measure.figures = _filled({row: figure(row, everything) for row in numbers})
    if groups is not None:
        named = np.asarray([group or "" for group in groups])
        for group in dict.fromkeys(g for g in groups if g):
            measure.by[group] = _filled({row: figure(row, named == group) for row in numbers})
    if measure.rows == "models" and study.base in numbers:
        base = (numbers[study.base], made[study.base])
        for row in numbers:
            if row != study.base:
                own = (numbers[row], made[row])
                pair = (
                    intervals.paired_share_difference(own, base)
                    if share
                    else intervals.paired_ratio_difference(own, base, study.seed, transform)
                )
                if pair.n:
                    measure.differences[row] = pair
    return measure


def noted(measure: Measure, missing: Mapping[str, int], what: str) -> Measure:
    """`measure` with a note for every model of which some units are left out."""
    for model, count in missing.items():
        if count:
            measure.notes.append(f"{model}: {count} {what}")
    return measure


def first_rows(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Evenly spaced rows, so that none is chosen by hand."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i * len(rows) // most] for i in range(most)]


def answer_rows(
    study: Study,
    prompts: Sequence[Any],
    marks: Callable[[str, int], list[str]],
    start: int = 0,
    groups: Sequence[Any] = (),
) -> list[dict[str, Any]]:
    """Samples side by side: for each prompt every model's first answer with its marks."""
    texts = {model: study.texts(model, start, start + len(prompts)) for model in study.models}
    return [
        {
            "prompt": prompt,
            "group": groups[i] if groups else None,
            "answers": {m: texts[m][i] for m in study.models if texts[m][i] is not None},
            "marks": {m: marks(m, i) for m in study.models if texts[m][i] is not None},
        }
        for i, prompt in enumerate(prompts)
    ]


def checked_baseline(study: Study, name: str) -> str:
    """`name`, the baseline, which must be one of the models.

    Raises:
        UserError: it is not.
    """
    if name not in study.models:
        raise UserError(
            f"{name or 'no model'} is given as the baseline",
            where="--baseline",
            expected=f"one of {', '.join(study.models)}",
        )
    return name


def _numbers(row: Row) -> np.ndarray:
    return np.asarray([math.nan if value is None else float(value) for value in row])


def _filled(figures: Mapping[str, Figure | None]) -> dict[str, Figure]:
    return {row: figure for row, figure in figures.items() if figure is not None}
