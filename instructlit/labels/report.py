"""Agreement of a set of labels, in the terms of the literature."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from instructlit.agreement import (
    Share,
    columns,
    flag_units,
    fleiss_kappa,
    krippendorff_alpha,
    pair_agreement,
    pairwise,
    share,
)
from instructlit.labels.export import aligned, by_task, latest, rankings
from instructlit.labels.records import Label


def agreement_report(labels: Iterable[Label]) -> dict[str, Any]:
    """The agreement of labelers of the same tasks, as plain JSON values; null if it is not defined.

    If a labeler labelled a task twice, the later label counts.

    Returns:
        `pairwise` (agreement, half_width, pairs, tasks), `alpha_ranks` and `alpha_ratings` (Krippendorff, ordinal),
        `kappa_flags` (Fleiss, by flag), `labelers` (each one's pairwise agreement with the others), `tasks` and
        `overlapping_tasks`.
    """
    tasks = by_task(latest(labels))
    shared = [group for group in tasks.values() if len(group) > 1]
    ratings = ([value for value in column if value is not None] for column in _said(shared, "ratings"))
    flags = _said(shared, "flags")
    return {
        "tasks": len(tasks),
        "overlapping_tasks": len(shared),
        "pairwise": _plain(pairwise(rankings(group) for group in shared)),
        "alpha_ranks": _number(krippendorff_alpha(columns(rankings(group) for group in shared))),
        "alpha_ratings": _number(krippendorff_alpha(ratings)),
        "kappa_flags": {name: _number(fleiss_kappa(units)) for name, units in flag_units(flags).items()},
        "labelers": {name: _plain(found) for name, found in sorted(each_labeler(shared).items())},
    }


def each_labeler(shared: Iterable[Sequence[Label]]) -> dict[str, Share]:
    """How often each labeler orders a pair like another labeler of the same task."""
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for group in shared:
        given = list(zip(group, rankings(group), strict=True))
        for label, ours in given:
            found = [pair_agreement(ours, theirs) for other, theirs in given if other is not label]
            counts[label.labeler].append((sum(agree for agree, _ in found), sum(total for _, total in found)))
    return {name: share(found) for name, found in counts.items()}


def _said(shared: Iterable[Sequence[Label]], name: Literal["ratings", "flags"]) -> Iterator[tuple[Any, ...]]:
    """For every completion, its labelers' values of `name`, if they gave any."""
    return columns(
        [aligned(label, group[0], getattr(label, name)) for label in group if getattr(label, name)] for group in shared
    )


def _plain(found: Share) -> dict[str, Any]:
    return {
        "agreement": _number(found.value),
        "half_width": _number(found.half_width),
        "pairs": found.pairs,
        "tasks": found.units,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
