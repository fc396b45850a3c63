"""The report of a loop: one row per round, and the accuracy of each reward model on each policy's answers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructlit.evaluation.measures import Curve
from instructlit.files import write_text
from instructlit.tools.evaluate.plots import curve
from instructlit.tools.reporting.html import document, figures

COLUMNS = (
    ("round", "round"),
    ("labels", "comparisons of this round"),
    ("accuracy_then", "previous reward model on held-out answers of its own round"),
    ("accuracy_before", "previous reward model on the new answers"),
    ("accuracy", "new reward model on the new answers"),
    ("preference", "preferred to the previous policy"),
)


def write_report(folder: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Writes report.html into the run folder and returns its path."""
    rows = "".join(f"<tr>{''.join(_cell(result, key) for key, _ in COLUMNS)}</tr>" for result in results)
    heads = "".join(f"<th>{escape(title)}</th>" for _, title in COLUMNS)
    path = folder / "report.html"
    explained = (
        "<p>Accuracy: the share of held-out pairs that a reward model orders as the labeler did, ties excluded. The "
        "previous reward model has seen no answers of the new policy; the new one was trained on some of them. "
        "Small figures are 95 % intervals over prompts.</p>"
    )
    sections = [
        "<h1>Rounds of labelling and learning</h1>",
        explained,
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>',
        *([figures([_plot(results)])] if len(results) > 1 else []),  # one round is a single point, already in the table
    ]
    write_text(path, document(f"instructlit iterate: {folder.name}", sections))
    return path


def falls_and_recovers(results: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Accuracy in chronological order: on each round's answers, first the old reward model, then the new one.

    The x of a point is its round; the old model's is half a round earlier.
    """
    points: list[tuple[float, float]] = []
    for result in results:
        if "accuracy_before" in result:
            points.append((result["round"] - 0.5, result["accuracy_before"]))
        points.append((float(result["round"]), result["accuracy"]))
    return points


def _plot(results: Sequence[Mapping[str, Any]]) -> str:
    curves = {"newest reward model on the newest policy's answers": falls_and_recovers(results)}
    x = "round (halves: before the reward model is trained again)"
    return curve(Curve("accuracy over the rounds", x, "", curves), whole=True)


def _cell(result: Mapping[str, Any], key: str) -> str:
    value = result.get(key)
    if value is None:
        return "<td></td>"
    if isinstance(value, int):
        return f"<td>{value}</td>"
    low, high = result[f"{key}_low"], result[f"{key}_high"]
    return f"<td>{value:.1%}<small>{low:.1%} to {high:.1%}</small></td>"
