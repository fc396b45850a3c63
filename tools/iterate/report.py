"""The page of a loop: a row a round, and how far each reward model is right about whose answers."""

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
    ("accuracy_then", "old reward model on held-out answers of its own round"),
    ("accuracy_before", "old reward model on the new answers"),
    ("accuracy", "new reward model on the new answers"),
    ("preference", "preferred to the policy before"),
)


def write_report(folder: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Writes report.html into the run folder and returns its path."""
    rows = "".join(f"<tr>{''.join(_cell(result, key) for key, _ in COLUMNS)}</tr>" for result in results)
    heads = "".join(f"<th>{escape(title)}</th>" for _, title in COLUMNS)
    path = folder / "report.html"
    explained = (
        "<p>Accuracy: the share of held-out pairs that a reward model orders as the labeler did, ties apart. On the "
        "answers of a newer policy the old reward model is on new ground; the new one has learnt from some of them. "
        "Small figures are 95 % intervals, prompts being the units.</p>"
    )
    sections = [
        "<h1>Rounds of labelling and learning</h1>",
        explained,
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>',
        *([figures([_plot(results)])] if len(results) > 1 else []),  # one round is a point, which the table has
    ]
    write_text(path, document(f"instructlit iterate: {folder.name}", sections))
    return path


def falls_and_recovers(results: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Accuracy in the order it was lived: on a round's answers the old reward model, then the new one.

    The x of a point is its round, the old model's a half before it.
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
