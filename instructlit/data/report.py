"""What reading the data came to: counted while it is read, said once, and kept for the record."""

from collections import Counter
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from instructlit.errors import UserError, counted


@dataclass
class SplitReport:
    """Counts of one split. `dropped` are records left out, by reason; `truncated` are kept, but cut and without EOS."""

    name: str
    kind: str
    rows: int = 0
    records: int = 0
    kept: int = 0
    truncated: int = 0
    tokens: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """The report in one line."""
        kept, rows = counted(self.kept, self.kind), counted(self.rows, "row")
        parts = [f"{self.name}: {kept} of {rows}, {counted(self.tokens, 'token')}"]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated (kept, without EOS)")
        if self.dropped:
            parts.append("dropped " + ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.most_common()))
        return "; ".join(parts)

    def require(self, max_dropped_fraction: float, hygiene: frozenset[str]) -> None:
        """An error where nothing is left, or where more was lost than the user allows (what hygiene takes is not lost).

        Raises:
            UserError: with the reasons.
        """
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.most_common())
        if not self.kept:
            raise UserError(
                f"nothing of {counted(self.records, self.kind)} is left: {reasons or 'none were found'}",
                where=self.name,
                expected="at least one that can be learned from",
            )
        lost = sum(n for reason, n in self.dropped.items() if reason not in hygiene)
        if lost > max_dropped_fraction * self.records:
            raise UserError(
                f"{lost:,} of {counted(self.records, self.kind)} would be dropped: {reasons}",
                where=self.name,
                expected=f"at most {max_dropped_fraction:.0%} (max_dropped_fraction)",
                fix="raise max_length or max_prompt_length, clean the data, or allow more with max_dropped_fraction",
            )


@dataclass
class DataReport:
    """The splits of a datamodule and what they share."""

    splits: list[SplitReport] = field(default_factory=list)
    shared_prompts: int = 0

    def lines(self) -> list[str]:
        """One line for each split, and a warning where one is due."""
        lines = [split.line() for split in self.splits]
        if self.shared_prompts:
            lines.append(f"warning: training has {counted(self.shared_prompts, 'prompt')} of validation too")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return plain(self)


def plain(value: Any) -> Any:
    """A report as containers that JSON knows (`asdict` fails on a Counter); of an array, how many it holds."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return len(value) if isinstance(value, np.ndarray) else value
