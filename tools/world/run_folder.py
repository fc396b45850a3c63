"""What the report reads from a run folder: the logged metrics."""

import csv
from pathlib import Path

Points = list[tuple[float, float]]


def logged(folder: Path, metric: str, x: str = "step") -> Points:
    """One metric of a stage's CSV logs against `x`, in order.

    If two rows have the same x, the later one counts.

    Args:
        folder: the CSV logger's folder, such as `logs/ppo`.
        metric: column of the metric.
        x: column of the x-axis. A row without it takes the previous row's.
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


def smoothed(points: Points, at_most: int = 120) -> Points:
    """Neighbouring points averaged, so that no curve has more than `at_most`."""
    if len(points) <= at_most:
        return points
    size = -(-len(points) // at_most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
