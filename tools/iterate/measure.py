"""`instructlit iterate measure`: the gain of a round of the loop, as numbers."""

import json
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.evaluation.intervals import grouped_share
from instructlit.evaluation.language_model import usable_device
from instructlit.files import write_json
from instructlit.labels import Label, read_labels, read_tasks
from instructlit.labels.records import read_rows, with_policies
from instructlit.tools.outputs import check_output
from instructlit.tools.scoring import Scorer


def iterate_measure(
    number: int,
    reward: str,
    data: str,
    reward_before: str | None = None,
    data_before: str | None = None,
    contest: str | None = None,
    contest_tasks: str | None = None,
    policy: str | None = None,
    policy_before: str | None = None,
    output: str = "round.json",
    device: str = "auto",
) -> None:
    """Measure a round: the old and the new reward model on the newest answers, the policy against the previous one.

    Accuracy is the share of held-out pairs, ties excluded, that a reward model orders as the labeler did; the
    preference is the share of comparisons that the policy wins, ties counting half. Intervals are 95 %, over prompts.

    Args:
        number: the round.
        reward: the round's reward model.
        data: the round's folder of comparisons.
        reward_before: the reward model of the previous round.
        data_before: the comparisons of the previous round.
        contest: labels of an evaluation of both policies.
        contest_tasks: the tasks of that evaluation, with their key.
        policy: the round's policy, as the key names it.
        policy_before: the previous policy, as the key names it.
        output: file to write.
        device: "auto", "cpu", "cuda", ...
    """
    check_output(output)
    place = usable_device(device)
    held_out = rows_of(Path(data) / "comparisons_validation.jsonl")
    found: dict[str, Any] = {"round": number, "labels": len(rows_of(Path(data) / "comparisons.jsonl")) + len(held_out)}
    found |= _accuracy("accuracy", Scorer(reward, place), held_out)
    if reward_before and data_before:
        before = Scorer(reward_before, place)
        found |= _accuracy("accuracy_before", before, held_out)
        found |= _accuracy("accuracy_then", before, rows_of(Path(data_before) / "comparisons_validation.jsonl"))
    if contest and contest_tasks and policy and policy_before:
        labels = with_policies(read_labels(contest), read_tasks(contest_tasks))
        found |= preference(labels, policy, policy_before)
    write_json(output, found)
    print(json.dumps(found))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file."""
    return [row for _, row in read_rows(path)] if path.is_file() else []


def preference(labels: list[Label], ours: str, theirs: str) -> dict[str, float]:
    """How often ours is ranked above theirs, ties counting half, with its 95 % interval by task.

    Raises:
        UserError: if no label compares the two.
    """
    tasks: dict[str, list[float]] = {}
    for label in labels:
        if label.ranks is None or label.policy is None or not {ours, theirs} <= set(label.policy):
            continue
        mine, other = (label.ranks[label.policy.index(name)] for name in (ours, theirs))
        tasks.setdefault(label.task, []).append(1.0 if mine < other else 0.5 if mine == other else 0.0)
    if not tasks:
        raise UserError(
            f"no label compares {ours} and {theirs}", where="--contest", expected="labels of an evaluation of both"
        )
    share, low, high = grouped_share([sum(won) for won in tasks.values()], [len(won) for won in tasks.values()])
    return {"preference": share, "preference_low": low, "preference_high": high, "contest_tasks": len(tasks)}


def _accuracy(name: str, scorer: Scorer, rows: list[dict[str, Any]]) -> dict[str, float]:
    share, low, high = grouped_share(*scorer.ordered(rows))
    return {name: share, f"{name}_low": low, f"{name}_high": high}
