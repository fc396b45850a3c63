"""What `instructlit data check` reports: lengths, pairs, counts of each option, and the problems found."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from instructlit.intervals import wilson_interval
from instructlit.types import Comparison


@dataclass
class Lengths:
    """Quantiles of some lengths."""

    count: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int

    @classmethod
    def of(cls, counted: Counter[int]) -> "Lengths | None":
        """The quantiles of lengths, given as length: count; None if there are none."""
        count = counted.total()
        if not count:
            return None
        lengths = np.array(sorted(counted))
        ranks = np.cumsum([counted[length] for length in lengths.tolist()])
        # the length at that position of the sorted list, rounded up
        places = [math.ceil(share * (count - 1)) for share in (0.5, 0.9, 0.99)]
        median, p90, p99 = (int(lengths[np.searchsorted(ranks, place, side="right")]) for place in places)
        mean = sum(length * n for length, n in counted.items()) / count
        return cls(count, mean, median, p90, p99, int(lengths[-1]))


@dataclass
class Pairs:
    """Counts of the pairs in some comparisons, and how well length alone predicts which of two is preferred."""

    total: int = 0
    tied: int = 0
    equal: int = 0  # two identical texts
    equal_but_ranked: int = 0  # ... with different ranks: nothing can be learned from them
    usable: int = 0
    same_length: int = 0
    longer_preferred: int = 0
    completions: Counter[int] = field(default_factory=Counter)  # K: number of prompts

    def add(self, record: Comparison, lengths: Sequence[int]) -> None:
        """Counts all pairs of one prompt."""
        self.completions[len(record.completions)] += 1
        for i, j in combinations(range(len(record.completions)), 2):
            self.total += 1
            if record.completions[i] == record.completions[j]:
                self.equal += 1
                self.equal_but_ranked += record.ranks[i] != record.ranks[j]
            elif record.ranks[i] == record.ranks[j]:
                self.tied += 1
            else:
                self.usable += 1
                if lengths[i] == lengths[j]:
                    self.same_length += 1
                else:
                    self.longer_preferred += (record.ranks[i] < record.ranks[j]) == (lengths[i] > lengths[j])

    @property
    def length_accuracy(self) -> tuple[float, float, float] | None:
        """Share of the usable pairs of unequal length whose longer completion is preferred, with the Wilson interval
        (95 %, pairs treated as independent); None if there are none.
        """
        n = self.usable - self.same_length
        return (self.longer_preferred / n, *wilson_interval(self.longer_preferred, n)) if n else None


@dataclass
class SourceReport:
    """Counts of the files that one option names."""

    name: str
    kind: str
    files: list[str]
    unit: str  # of the lengths: tokens, or characters without a tokenizer
    rows: int = 0
    records: int = 0
    wrong: int = 0
    wrong_rows: list[str] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    missing_eos: int = 0
    eos_inside: int = 0
    later_turns: int = 0
    special_inside: int = 0
    unknown: int = 0
    duplicates: int = 0
    repeated_prompts: int = 0
    near_duplicates: int = 0
    personal_data: int = 0
    template_mismatch: int = 0
    merged_boundaries: int = 0
    leading_space: int = 0
    conversations: int = 0
    prompt_lengths: Lengths | None = None
    response_lengths: Lengths | None = None
    lengths: Lengths | None = None
    pairs: Pairs | None = None
    prompts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)  # distinct hashes

    @property
    def kept(self) -> int:
        """Records that training would see."""
        return self.records - self.dropped.total()


@dataclass
class Problem:
    """Something to know about the data. Only "fatal" ones would stop or ruin a training run."""

    level: str  # fatal, warning or note
    where: str
    what: str


@dataclass
class CheckReport:
    """Everything that `instructlit data check` found."""

    sources: list[SourceReport] = field(default_factory=list)
    tokenizer: dict[str, Any] | None = None
    shared_prompts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def fatal(self) -> bool:
        """Whether training could not, or should not, start."""
        return any(problem.level == "fatal" for problem in self.problems)
