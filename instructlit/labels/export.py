"""Labels as the rows that training and evaluation read: comparisons, demonstrations, evaluations.

Every label that is left out is counted by its reason, so that the counts show all decisions made here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructlit.agreement import pairwise
from instructlit.data.splits import is_held_out, prompt_key
from instructlit.errors import UserError
from instructlit.labels.records import Label, LabelKind, Task, in_order

FILES: dict[LabelKind, str] = {
    "comparison": "comparisons",
    "demonstration": "demonstrations",
    "evaluation": "evaluations",
}
"""The file name for each kind; `_validation` is appended for held-out prompts."""

SKIPPED, REPORTED, TIED = "skipped by the labeler", "of a prompt reported as unsuitable", "with all completions tied"
DISPUTED, WEIGHTLESS, REVISED = "of a disputed task", "by a labeler of weight 0", "revised later by the same labeler"


@dataclass
class Exported:
    """Rows by kind and split, and what was left out."""

    train: dict[LabelKind, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in FILES})
    validation: dict[LabelKind, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in FILES})
    left_out: Counter[str] = field(default_factory=Counter)

    def files(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Name (without suffix) and rows of every non-empty file."""
        for kind, name in FILES.items():
            for rows, file in ((self.train[kind], name), (self.validation[kind], f"{name}_validation")):
                if rows:
                    yield file, rows


def export(
    labels: Iterable[Label],
    validation_fraction: float = 0.05,
    weights: Mapping[str, float] | None = None,
    min_agreement: float | None = None,
) -> Exported:
    """Rows in the form that the datamodules read, with labeler, ratings, flags, policy, round and task.

    If a labeler labelled a task twice, the later label counts. A comparison in which all are tied teaches nothing and
    is left out; in an evaluation that is a result, and kept. Evaluations are never held out.

    Args:
        labels: in the order they were given.
        validation_fraction: share of the prompts whose rows go to validation. The choice depends on the prompt
            alone, so that a prompt never changes sides between rounds; a side may be empty.
        weights: how often a labeler's rows occur in an epoch, 1 for those not named; 0 leaves them out. A named labeler
            may have no labels: one mapping serves every round of a loop.
        min_agreement: minimum share of the pairs that a task's labelers must order alike; tasks below are left out. It
            does not apply to tasks with one labeler, or without a pair that two of them order.

    Raises:
        UserError: if a fraction or weight is out of range.
    """
    _check_share("validation_fraction", validation_fraction)
    if min_agreement is not None:
        _check_share("min_agreement", min_agreement)
    kept, left_out = usable(labels)
    found = Exported(left_out=left_out)
    _check_weights(weights or {})
    disputed = _disputed(kept, min_agreement) if min_agreement is not None else set()
    for label in kept:
        weight = (weights or {}).get(label.labeler, 1.0)
        reason = _reason(label, disputed, weight)
        if reason:
            found.left_out[reason] += 1
        else:
            validates = label.kind != "evaluation" and is_held_out(label.prompt, validation_fraction)
            (found.validation if validates else found.train)[label.kind].append(row(label, weight))
    return found


def row(label: Label, weight: float = 1.0) -> dict[str, Any]:
    """A label as a row of its kind's file; ratings only if all completions have one."""
    made: dict[str, Any] = {"prompt": label.prompt}
    if label.kind == "demonstration":
        made["completion"] = label.completions[0]
    else:
        made |= {"completions": label.completions, "ranks": label.ranks}
    told = {
        "labeler": label.labeler,
        "ratings": label.ratings if label.ratings and None not in label.ratings else None,
        "flags": label.flags,
        "policy": label.policy,
        "ended": label.ended,
        "use_case": label.use_case,
        "user": label.user,
        "weight": weight if weight != 1.0 else None,
        "round": label.round,
        "task": label.task,
        "seconds": label.seconds,
        "instructions": label.instructions,
    }
    return made | {name: value for name, value in told.items() if value is not None}


def usable(labels: Iterable[Label]) -> tuple[list[Label], Counter[str]]:
    """Each labeler's last label of a task, if it is an answer and nobody reported the prompt; the others by reason."""
    given = list(labels)
    last = latest(given)
    unfit = {prompt_key(label.prompt) for label in last if label.reported}
    left_out, kept = Counter([REVISED] * (len(given) - len(last))), []
    for label in last:
        if label.skipped is not None:
            left_out[SKIPPED] += 1
        elif prompt_key(label.prompt) in unfit:
            left_out[REPORTED] += 1
        else:
            kept.append(label)
    return kept, left_out


def _reason(label: Label, disputed: set[str], weight: float) -> str | None:
    """Why a usable label becomes no row, or None."""
    reasons = {
        WEIGHTLESS: weight == 0,
        DISPUTED: label.task in disputed,
        TIED: label.kind == "comparison" and label.ranks is not None and len(set(label.ranks)) == 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def latest(labels: Iterable[Label]) -> list[Label]:
    """The last label of every labeler on every task, in the order of the first."""
    return list({(label.task, label.labeler): label for label in labels}.values())


def by_task(labels: Iterable[Label]) -> dict[str, list[Label]]:
    """The ranked labels of each task, their completions in the order of the first."""
    tasks: dict[str, list[Label]] = {}
    for label in labels:
        if label.ranks is not None and label.skipped is None:
            tasks.setdefault(label.task, []).append(label)
    return tasks


def rankings(labels: Sequence[Label]) -> list[list[int]]:
    """The ranks of one task's labels, all in the order of the first one's completions.

    Raises:
        UserError: if two labels of the task have different completions.
    """
    return [aligned(label, labels[0], label.ranks or []) for label in labels]


def aligned(label: Label, first: Label | Task, values: Sequence[Any]) -> list[Any]:
    """Values of a label's completions in the order of the task, or of its first label."""
    if label.completions == first.completions:
        return list(values)
    if sorted(label.completions) != sorted(first.completions):
        raise UserError(
            f"{label.labeler!r} ranked completions that differ from those of the task or of its first label",
            where=f"task {label.task!r}",
            expected="the same completions in every label of a task",
        )
    return in_order(first.completions, label.completions, values)


def _disputed(labels: Sequence[Label], least: float) -> set[str]:
    shares = {task: pairwise([rankings(group)]) for task, group in by_task(labels).items() if len(group) > 1}
    return {task for task, share in shares.items() if share.pairs and share.value < least}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1 and not (name == "min_agreement" and value == 1):
        raise UserError(f"found {value}", where=name, expected="a number from 0 to 1")


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"the weight of {name!r} is {weight}", where="weights", expected="a number, 0 or more")
