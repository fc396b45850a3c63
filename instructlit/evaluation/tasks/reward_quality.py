"""How good a reward model is: agreement with labelers, calibration, and preference for length."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from instructlit.data.formats import read_records
from instructlit.data.readers import open_source
from instructlit.data.sources import Place, as_source
from instructlit.errors import UserError, require
from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import needed
from instructlit.evaluation.intervals import Figure
from instructlit.evaluation.judging import Question
from instructlit.evaluation.measures import PERCENT, Curve, Measure, Outcome, Study
from instructlit.evaluation.task import Task
from instructlit.ops.statistics import calibration_bins, calibration_error, calibration_sums
from instructlit.types import Comparison, PromptText

ROWS = "reward models"


@dataclass(frozen=True)
class Pair:
    """Two answers of which a labeler preferred the first."""

    prompt: PromptText
    chosen: str
    rejected: str
    unit: int  # pairs of one prompt are not independent trials
    labeler: str | None = None
    margin: int | None = None  # ranks between the two
    subset: str | None = None
    ended: tuple[bool, bool] = (True, True)


class RewardQuality(Task):
    """Accuracy by labeler and margin, calibration, and correlation of scores with length.

    Args:
        data: comparisons in any format that training reads, or RewardBench-style rows with prompt, chosen,
            rejected and a subset.
        judges: names of the reward models among the judges.
        limit: use only this many rows, the first ones.
        bins: number of bins of the reliability plot.
    """

    def __init__(
        self,
        data: Place | None = None,
        judges: list[str] | None = None,
        limit: int | None = None,
        bins: int = 10,
    ):
        require("a whole number above 0", bins=bins)
        self.data, self.judges = data, ["reward"] if judges is None else judges
        self.limit, self.bins = limit, bins

    def judges_asked(self) -> Sequence[str]:
        return self.judges

    def measure(self, study: Study) -> Outcome:
        pairs = read_pairs(needed(self.data, "reward_quality.data", "comparisons are"), self.limit)
        accuracy, error, length, labelers = _measures()
        lines: dict[str, list[tuple[float, float]]] = {}
        units = np.array([p.unit for p in pairs])
        longer = np.array([len(p.chosen) - len(p.rejected) for p in pairs], dtype=float)
        for name in self.judges:
            differences = self._differences(study, name, pairs)
            known = np.isfinite(differences)
            if not known.any():
                continue
            right = _preferred(differences)
            accuracy.figures[name] = _by_prompt(right, pairs, known)
            for group, chosen in _groups(pairs).items():
                if (chosen & known).any():
                    accuracy.by.setdefault(group, {})[name] = _by_prompt(right, pairs, chosen & known)
            own = units[known]
            error.figures[name], lines[name] = calibration(differences[known], own, self.bins, study.seed)
            if known.sum() > 3 and longer[known].std() > 0 and differences[known].std() > 0:
                length.figures[name] = intervals.correlation(differences[known], longer[known], own, study.seed)
            labelers.figures[name] = _by_prompt(_preferred(longer), pairs, known)
        plot = Curve(
            "How sure, and how often right",
            "sigmoid of the difference in score",
            "share where the labeler agrees",
            lines,
            True,
        )
        measures = [m for m in (accuracy, error, length, labelers) if m.figures]
        return Outcome(measures, curves=[plot] if lines else [])

    @staticmethod
    def _differences(study: Study, judge: str, pairs: Sequence[Pair]) -> np.ndarray:
        """(pairs,) score of the chosen answer minus that of the rejected one; nan if there is no score."""
        asked = [Question("score", p.prompt, (p.chosen,), ended=p.ended[:1]) for p in pairs]
        asked += [Question("score", p.prompt, (p.rejected,), ended=p.ended[1:]) for p in pairs]
        scores = np.array([np.nan if v.value is None else v.value for v in study.desk.ask(judge, asked)])
        return scores[: len(pairs)] - scores[len(pairs) :]


def _measures() -> tuple[Measure, Measure, Measure, Measure]:
    """The measures of accuracy, calibration, and the correlation of scores and labels with length, without figures."""
    accuracy = Measure(
        "reward_model/accuracy",
        "accuracy",
        "Share of pairs that the reward model orders as the labeler did, equal scores counted half, by prompt.",
        PERCENT,
        rows=ROWS,
    )
    error = Measure(
        "reward_model/calibration_error",
        "calibration error",
        "Mean distance between how sure the model is of its favourite, sigmoid of the difference in score, and how "
        "often the labeler agrees, over bins (ECE).",
        PERCENT,
        "down",
        rows=ROWS,
    )
    length = Measure(
        "reward_model/length_correlation",
        "goes with length",
        "Correlation of the difference in score with the difference in characters, over pairs.",
        "{:.2f}",
        "",
        rows=ROWS,
    )
    labelers = Measure(
        "reward_model/length_baseline",
        "if the longer were better",
        "Share of the same pairs whose longer answer the labeler preferred.",
        PERCENT,
        "",
        rows=ROWS,
    )
    return accuracy, error, length, labelers


def _preferred(differences: np.ndarray) -> np.ndarray:
    """1 where the chosen answer has more, 0.5 where both have the same, 0 where it has less."""
    return np.where(differences > 0, 1.0, np.where(differences == 0, 0.5, 0.0))


def calibration(
    differences: np.ndarray, units: Sequence[Any] | np.ndarray, bins: int, seed: int
) -> tuple[Figure, list[tuple[float, float]]]:
    """Expected calibration error of the favourite, with a bootstrap interval by prompt, and the reliability line.

    Args:
        differences: (N,) score of the answer the labeler chose minus that of the other.
        units: (N,) the prompt of each.
        bins: number of equal-width bins of the favourite's probability, from 0.5 to 1.
        seed: seed of the resampling.
    """
    sure = 1 / (1 + np.exp(-np.abs(differences)))
    right = _preferred(differences)
    sums = calibration_sums(torch.tensor(sure), torch.tensor(right), bins, low=0.5)
    value = float(calibration_error(sums))
    index = calibration_bins(torch.tensor(sure), bins, low=0.5).numpy()
    gaps = np.zeros((len(sure), bins + 1))
    gaps[np.arange(len(sure)), index] = right - sure
    gaps[:, bins] = 1.0
    by_prompt = intervals.by_unit(gaps, units)

    def statistic(counts: np.ndarray) -> np.ndarray:
        drawn = counts @ by_prompt
        return np.abs(drawn[:, :bins]).sum(1) / drawn[:, bins]

    n = len(differences)
    low, high = intervals.bootstrap(statistic, len(by_prompt), seed) if len(by_prompt) > 1 else (0.0, 1.0)
    count, confidence, correct = sums.tolist()
    line = [(s / c, r / c) for c, s, r in zip(count, confidence, correct, strict=True) if c]
    return Figure(value, min(low, value), max(high, value), n), line


def read_pairs(data: Place, limit: int | None) -> list[Pair]:
    """Every pair of a set of comparisons that a labeler did not tie.

    Raises:
        UserError: it has no such pair.
    """
    found: list[Pair] = []
    source = as_source(data)
    places = ((file, i) for file in open_source(source, "reward.data") for i in range(len(file)))
    units: dict[str, int] = {}
    for file, i in islice(places, limit):
        row = file[i]
        _, records = read_records(row, file.where(i), "comparison", source.format)
        for record in records:
            assert isinstance(record, Comparison)
            unit = units.setdefault(str(record.prompt), len(units))
            subset = row.get("subset") or record.use_case
            for a, first in enumerate(record.ranks):
                for b, second in enumerate(record.ranks):
                    if first < second:
                        margin = second - first if len(record.ranks) > 2 else None
                        texts = record.completions[a], record.completions[b]
                        ended = record.ends[a], record.ends[b]
                        found.append(Pair(record.prompt, *texts, unit, record.labeler, margin, subset, ended))
    if not found:
        raise UserError("there is no pair that is not tied", where="reward.data", expected="comparisons")
    return found


def _by_prompt(right: np.ndarray, pairs: Sequence[Pair], chosen: np.ndarray) -> Figure:
    units = np.array([p.unit for p in pairs])[chosen]
    _, place = np.unique(units, return_inverse=True)
    figure = intervals.share(np.bincount(place, weights=right[chosen]), np.bincount(place).astype(float))
    return Figure(figure.value, figure.low, figure.high, int(chosen.sum()))


def _groups(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Which pairs belong to each labeler, margin and subset; empty for a kind with only one value."""
    found: dict[str, Any] = {}
    for kind, values in (
        ("labeler", [p.labeler for p in pairs]),
        ("ranks apart", [p.margin for p in pairs]),
        ("subset", [p.subset for p in pairs]),
    ):
        present = sorted({v for v in values if v is not None}, key=lambda v: (str(type(v)), v))
        if len(present) > 1:
            for value in present:
                found[f"{kind}: {value}"] = np.array([v == value for v in values])
    return found
