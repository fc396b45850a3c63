"""What labels say about labelers: agreement, speed, position and length bias. Pure functions of label records.

A pair of completions counts where both sides order it: two labelers agree on it where they put the same one first, and
pairs that either calls a tie are left out (their share is told). Intervals are Wilson's over pairs. Krippendorff's
alpha and Fleiss' kappa are over outputs that two people or more have judged.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from instructlit.agreement import fleiss_kappa, krippendorff_alpha, pair_agreement
from instructlit.intervals import wilson_interval

Record = Mapping[str, Any]
_DAY = 24 * 3600


@dataclass
class Share:
    """Hits of trials, with the interval."""

    hits: int = 0
    trials: int = 0

    def add(self, hits: int, trials: int) -> None:
        """Count more."""
        self.hits += hits
        self.trials += trials

    @property
    def value(self) -> float | None:
        """The share, or None where there was no trial."""
        return self.hits / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval; (0, 1) without trials."""
        return wilson_interval(self.hits, self.trials)


@dataclass
class LabelerMeasures:
    """One labeler's figures. `first` is how often the output shown earlier wins, `longer` how often the longer one
    does: of the pairs this labeler orders, 50 % and whatever the others have is what one expects.
    """

    seconds: list[float] = field(default_factory=list)
    others: Share = field(default_factory=Share)
    gold: Share = field(default_factory=Share)
    first: Share = field(default_factory=Share)
    longer: Share = field(default_factory=Share)
    ties: Share = field(default_factory=Share)

    @property
    def median_seconds(self) -> float | None:
        """Median time on a task."""
        return median(self.seconds) if self.seconds else None


@dataclass
class Dispute:
    """A task that its labelers do not agree on."""

    task: int
    kind: str
    prompt: Any
    labelers: int
    agreement: Share
    rating_gap: int


@dataclass
class Measures:
    """Everything the dashboard shows."""

    labels: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by kind
    days: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # days since 1970 (UTC): labels handed in
    agreement: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))  # by kind
    flag_agreement: Share = field(default_factory=Share)
    labelers: dict[str, LabelerMeasures] = field(default_factory=lambda: defaultdict(LabelerMeasures))
    first: Share = field(default_factory=Share)
    longer: Share = field(default_factory=Share)
    disputes: list[Dispute] = field(default_factory=list)
    alpha_ranks: float = math.nan  # Krippendorff's, ordinal; nan where no output has two labelers
    alpha_ratings: float = math.nan
    kappa_flags: dict[str, float] = field(default_factory=dict)  # Fleiss', by flag


def measure(records: Iterable[Record]) -> Measures:
    """One pass over label records, gold questions among them."""
    found = Measures()
    by_task: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record)
        _count(found, record)
    for labels in by_task.values():
        _compare(found, labels)
    shared = [labels for labels in by_task.values() if len(labels) > 1]
    found.alpha_ranks = krippendorff_alpha(_columns(shared, "ranks"))
    found.alpha_ratings = krippendorff_alpha(_columns(shared, "ratings"))
    found.kappa_flags = {name: fleiss_kappa(units) for name, units in sorted(_flags(shared).items())}
    found.disputes.sort(key=lambda dispute: (dispute.agreement.value or 0.0, -dispute.rating_gap))
    return found


def _count(found: Measures, record: Record) -> None:
    labeler = found.labelers[record["labeler"]]
    found.labels[record["kind"]] += 1
    found.days[int(record["submitted_at"] // _DAY)] += 1
    if record["seconds"] is not None:
        labeler.seconds.append(record["seconds"])
    if "ranks" not in record:
        return
    if record["gold"] is not None:
        labeler.gold.add(*pair_agreement(record["ranks"], record["gold"]))
    ranks, lengths = record["ranks"], [len(text) for text in record["completions"]]
    for earlier, later in combinations(record["order"] or range(len(ranks)), 2):
        tie = ranks[earlier] == ranks[later]
        labeler.ties.add(tie, 1)
        if tie:
            continue
        for share in (labeler.first, found.first) if record["order"] else ():
            share.add(ranks[earlier] < ranks[later], 1)
        if lengths[earlier] != lengths[later]:
            longer_won = (ranks[earlier] < ranks[later]) == (lengths[earlier] > lengths[later])
            for share in (labeler.longer, found.longer):
                share.add(longer_won, 1)


def _compare(found: Measures, labels: list[Record]) -> None:
    """Everybody on one task against everybody else on it."""
    on_task, gap = Share(), 0
    for ours, theirs in combinations(labels, 2):
        if "ranks" in ours:
            agreed, both = pair_agreement(ours["ranks"], theirs["ranks"])
            for share in (on_task, found.agreement[ours["kind"]]):
                share.add(agreed, both)
            for name in (ours["labeler"], theirs["labeler"]):
                found.labelers[name].others.add(agreed, both)
        if "ratings" in ours and "ratings" in theirs:
            gap = max(gap, *(abs(a - b) for a, b in zip(ours["ratings"], theirs["ratings"], strict=True)))
        if "flags" in ours and "flags" in theirs:
            for mine, other in zip(ours["flags"], theirs["flags"], strict=True):
                common = mine.keys() & other.keys()
                found.flag_agreement.add(sum(mine[name] == other[name] for name in common), len(common))
    if (on_task.trials and on_task.hits < on_task.trials) or gap >= 3:
        first = labels[0]
        found.disputes.append(Dispute(first["task"], first["kind"], first["prompt"], len(labels), on_task, gap))


def _columns(shared: Iterable[Sequence[Record]], name: str) -> Iterator[tuple[Any, ...]]:
    """For every output of every task what its labelers said under `name`."""
    for labels in shared:
        yield from zip(*(label[name] for label in labels if name in label), strict=True)


def _flags(shared: Iterable[Sequence[Record]]) -> dict[str, list[list[bool]]]:
    """For every flag and output what those said who answered."""
    units: dict[str, list[list[bool]]] = defaultdict(list)
    for column in _columns(shared, "flags"):
        for name in set().union(*column):
            units[name].append([said[name] for said in column if name in said])
    return units
