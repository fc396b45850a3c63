"""Counts of the data: collected while it is read, printed once, and kept with the model."""

from collections import Counter
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from instructlit.errors import UserError, counted


@dataclass
class SplitReport:
    """Counts of one split. `dropped` counts records left out, by reason; `truncated` those cut, without EOS."""

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
        """Raises an error if nothing is left, or more was lost than allowed (rows dropped by hygiene are not lost).

        Raises:
            UserError: with the reasons.
        """
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.most_common())
        if not self.kept:
            raise UserError(
                f"none of {counted(self.records, self.kind)} is left: {reasons or 'none were found'}",
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
        """One line per split, and a warning if there are shared prompts."""
        lines = [split.line() for split in self.splits]
        if self.shared_prompts:
            lines.append(f"warning: training and validation share {counted(self.shared_prompts, 'prompt')}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return plain(self)


def plain(value: Any) -> Any:
    """A report as JSON containers (`asdict` fails on a Counter); an array becomes its length."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return len(value) if isinstance(value, np.ndarray) else value
