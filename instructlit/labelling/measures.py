"""Measures of labelers: agreement, speed, position and length bias. Pure functions of label records.

A pair of completions counts if both labelers order it: they agree if they put the same one first, and pairs that either
calls a tie are left out (their share is reported). Intervals treat tasks, not pairs, as independent. Krippendorff's
alpha and Fleiss' kappa are over outputs that two or more people have judged.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from instructlit.agreement import Tally, columns, flag_units, fleiss_kappa, krippendorff_alpha, pair_agreement

Record = Mapping[str, Any]
Counts = dict[Tally, list[int]]
"""For one task: successes and trials by the tally that they are added to."""
_DAY = 24 * 3600


@dataclass
class LabelerMeasures:
    """One labeler's figures. `first` is how often the output shown earlier wins, `longer` how often the longer one
    does, among the pairs this labeler orders: expect 50 % for `first`, and the others' value for `longer`.
    """

    seconds: list[float] = field(default_factory=list)
    others: Tally = field(default_factory=Tally)
    gold: Tally = field(default_factory=Tally)
    first: Tally = field(default_factory=Tally)
    longer: Tally = field(default_factory=Tally)
    ties: Tally = field(default_factory=Tally)

    @property
    def median_seconds(self) -> float | None:
        """Median time per task."""
        return median(self.seconds) if self.seconds else None


@dataclass
class Dispute:
    """A task on which its labelers disagree."""

    task: int
    kind: str
    prompt: Any
    labelers: int
    agreed: int  # pairs of outputs, over all pairs of labelers
    pairs: int
    rating_gap: int


@dataclass
class Measures:
    """Everything the dashboard shows."""

    labels: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by kind
    days: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # days since 1970 (UTC): labels submitted
    agreement: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))  # by kind
    flag_agreement: Tally = field(default_factory=Tally)
    labelers: dict[str, LabelerMeasures] = field(default_factory=lambda: defaultdict(LabelerMeasures))
    first: Tally = field(default_factory=Tally)
    longer: Tally = field(default_factory=Tally)
    disputes: list[Dispute] = field(default_factory=list)
    alpha_ranks: float = math.nan  # Krippendorff's, ordinal; nan if no output has two labelers
    alpha_ratings: float = math.nan
    kappa_flags: dict[str, float] = field(default_factory=dict)  # Fleiss', by flag


def measure(records: Iterable[Record]) -> Measures:
    """One pass over label records, gold questions included."""
    found = Measures()
    by_task: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record["task"]].append(record)
    for labels in by_task.values():
        counts: Counts = defaultdict(lambda: [0, 0])
        for record in labels:
            _count(found, counts, record)
        _compare(found, counts, labels)
        for tally, (successes, trials) in counts.items():
            tally.add(successes, trials)
    shared = [labels for labels in by_task.values() if len(labels) > 1]
    found.alpha_ranks = krippendorff_alpha(_said(shared, "ranks"))
    found.alpha_ratings = krippendorff_alpha(_said(shared, "ratings"))
    found.kappa_flags = {name: fleiss_kappa(of) for name, of in flag_units(_said(shared, "flags")).items()}
    found.disputes.sort(key=lambda dispute: (dispute.agreed / max(dispute.pairs, 1), -dispute.rating_gap))
    return found


def _add(counts: Counts, tally: Tally, successes: int, trials: int) -> None:
    row = counts[tally]
    row[0], row[1] = row[0] + successes, row[1] + trials


def _count(found: Measures, counts: Counts, record: Record) -> None:
    """Counts one label by itself."""
    labeler = found.labelers[record["labeler"]]
    found.labels[record["kind"]] += 1
    found.days[int(record["submitted_at"] // _DAY)] += 1
    if record["seconds"] is not None:
        labeler.seconds.append(record["seconds"])
    if "ranks" not in record:
        return
    if record["gold"] is not None:
        _add(counts, labeler.gold, *pair_agreement(record["ranks"], record["gold"]))
    ranks, lengths = record["ranks"], [len(text) for text in record["completions"]]
    for earlier, later in combinations(record["order"] or range(len(ranks)), 2):
        tie = ranks[earlier] == ranks[later]
        _add(counts, labeler.ties, tie, 1)
        if tie:
            continue
        for tally in (labeler.first, found.first) if record["order"] else ():
            _add(counts, tally, ranks[earlier] < ranks[later], 1)
        if lengths[earlier] != lengths[later]:
            longer_won = (ranks[earlier] < ranks[later]) == (lengths[earlier] > lengths[later])
            for tally in (labeler.longer, found.longer):
                _add(counts, tally, longer_won, 1)


def _compare(found: Measures, counts: Counts, labels: list[Record]) -> None:
    """Compares all labelers of one task with each other."""
    kind, gap = labels[0]["kind"], 0
    for ours, theirs in combinations(labels, 2):
        if "ranks" in ours:
            agreed, both = pair_agreement(ours["ranks"], theirs["ranks"])
            labelers = (found.labelers[one["labeler"]] for one in (ours, theirs))
            for tally in (found.agreement[kind], *(labeler.others for labeler in labelers)):
                _add(counts, tally, agreed, both)
        if "ratings" in ours and "ratings" in theirs:
            gap = max(gap, *(abs(a - b) for a, b in zip(ours["ratings"], theirs["ratings"], strict=True)))
        if "flags" in ours and "flags" in theirs:
            for mine, other in zip(ours["flags"], theirs["flags"], strict=True):
                common = mine.keys() & other.keys()
                _add(counts, found.flag_agreement, sum(mine[name] == other[name] for name in common), len(common))
    agreed, pairs = counts[found.agreement[kind]]
    if agreed < pairs or gap >= 3:
        first = labels[0]
        found.disputes.append(Dispute(first["task"], kind, first["prompt"], len(labels), agreed, pairs, gap))


def _said(shared: Iterable[Sequence[Record]], name: str) -> Iterator[tuple[Any, ...]]:
    """For every output of every task, its labelers' values of `name`."""
    return columns([label[name] for label in labels if name in label] for labels in shared)
