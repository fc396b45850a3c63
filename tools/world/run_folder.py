"""What the report reads from a run folder: logged metrics, validation samples, commands."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.tools.world.folder import rows
from instructlit.world import World

Points = list[tuple[float, float]]


def read_results(folder: Path) -> dict[str, Any]:
    """The results.json of a run.

    Raises:
        UserError: there is none.
    """
    path = folder / "results.json"
    if not path.exists():
        raise UserError("no results yet", where=str(path), fix="run `instructlit world evaluate` in that folder first")
    return json.loads(path.read_text(encoding="utf-8"))


def logged(folder: Path, metric: str, x: str = "step") -> Points:
    """One metric of a stage's CSV logs against `x`, in order.

    Where two rows give the same x, the later one counts.

    Args:
        folder: of the CSV logger, as `logs/ppo`.
        metric: column of the metric.
        x: column of the x-axis. A row that lacks it takes the last one before.
    """
    found: dict[float, float] = {}
    path = folder / "metrics.csv"
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            at: float | None = None
            for row in csv.DictReader(file):
                at = float(row[x]) if row.get(x) else at
                if row.get(metric) and at is not None:
                    found[at] = float(row[metric])
    return sorted(found.items())


def optimisation_curve(path: Path, world: World) -> list[dict[str, float]]:
    """Mean KL, reward-model score and gold score of the validation samples at each time they were taken.

    Args:
        path: JSON Lines with `iteration`, `prompt`, `response`, `score` and `kl`.
        world: its gold scorer judges the responses.
    """
    groups: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows(path):
        groups[row["iteration"]][row["prompt"]] = row  # of an interrupted run the later row counts
    curve = []
    for iteration, group in sorted(groups.items()):
        samples = list(group.values())
        gold = [world.judge(row["prompt"], row["response"]).score for row in samples]
        curve.append(
            {
                "iteration": iteration,
                "kl": _mean([row["kl"] for row in samples]),
                "score": _mean([row["score"] for row in samples]),
                "gold": _mean(gold),
            }
        )
    return curve


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
