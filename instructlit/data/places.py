"""The rows and files that a batch was made from: for messages, and computed only when one is written."""

from collections.abc import Iterable
from typing import Any

from torch.utils.data import ConcatDataset

MOST = 64


def place(rows: Any, index: int) -> str:
    """File and line of row `index` of a dataset; only the index if the dataset does not know them."""
    if isinstance(rows, ConcatDataset):
        part = next(i for i, end in enumerate(rows.cumulative_sizes) if index < end)
        return place(rows.datasets[part], index - (rows.cumulative_sizes[part - 1] if part else 0))
    return rows.where(index) if hasattr(rows, "where") else f"row: {index}"


def listed(places: Iterable[str], most: int = MOST) -> str:
    """`a.jsonl:3`, `a.jsonl:8` and `b.jsonl:1` as `a.jsonl: 3, 8; b.jsonl: 1`."""
    files: dict[str, list[str]] = {}
    count = 0
    for count, told in enumerate(places, start=1):
        file, _, line = told.rpartition(":")
        if count <= most:
            files.setdefault(file, []).append(line.strip())
    text = "; ".join(f"{file}: {', '.join(lines)}" for file, lines in files.items())
    return f"{text} and {count - most} more" if count > most else text
