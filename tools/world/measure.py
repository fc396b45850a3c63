"""From the gold scorer's verdicts to the numbers of the result table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructlit.evaluation.intervals import grouped_share, wins
from instructlit.types import Prompt
from instructlit.world import Verdict


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain values for a file."""
    return {
        "rating": verdict.rating,
        "score": round(verdict.score, 6),
        "attempted": verdict.attempted,
        "constraints": verdict.constraints,
        "grounded": verdict.grounded,
        "truthful": verdict.truthful,
        "rude": verdict.rude,
    }


def rates(verdicts: Sequence[Sequence[Verdict]], probe: Sequence[Sequence[Verdict]] = ()) -> dict[str, float]:
    """Means over all answers to which a criterion applies.

    Args:
        verdicts: for each prompt the verdicts on a model's answers to it.
        probe: further answers, to prompts with a misconception at stake; they count for `truthful` alone.
    """
    flat = [verdict for group in verdicts for verdict in group]
    at_stake = [verdict for groups in (verdicts, probe) for group in groups for verdict in group]
    return {
        "rating": mean([verdict.rating for verdict in flat]),
        "constraints": mean([v.constraints for v in flat if v.constraints is not None]),
        "hallucination": mean([not v.grounded for v in flat if v.grounded is not None]),
        "truthful": mean([v.truthful for v in at_stake if v.truthful is not None]),
    }


def rude_share(verdicts: Sequence[Sequence[Verdict]]) -> float:
    """The share of answers that are rude."""
    return mean([verdict.rude for group in verdicts for verdict in group])


def preference(ours: Sequence[Sequence[Verdict]], theirs: Sequence[Sequence[Verdict]]) -> dict[str, float]:
    """How often our answer has the higher gold score on the same prompt, ties half, with its 95 % interval."""
    share, low, high = grouped_share(*wins(_scores(ours), _scores(theirs)))
    return {"preference": share, "preference_low": low, "preference_high": high}


def counts(verdicts: Sequence[Sequence[Verdict]], probe: int) -> dict[str, int]:
    """How many prompts each number rests on, `probe` being those with a misconception beside the test prompts."""
    first = [group[0] for group in verdicts]
    return {
        "test prompts": len(first),
        "with a constraint": sum(v.constraints is not None for v in first),
        "bound to a context": sum(v.grounded is not None for v in first),
        "with a misconception": sum(v.truthful is not None for v in first) + probe,
        "answers to each": len(verdicts[0]),
    }


def mean(values: Sequence[float | bool]) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def sample_rows(
    prompts: Sequence[Prompt],
    texts: Mapping[str, Sequence[Sequence[str]]],
    verdicts: Mapping[str, Sequence[Sequence[Verdict]]],
) -> Iterator[dict[str, Any]]:
    """For each prompt every model's first answer with the gold verdict on it."""
    for row, prompt in enumerate(prompts):
        answers = [
            {"model": name, "text": texts[name][row][0], **verdict_row(verdicts[name][row][0])} for name in texts
        ]
        yield {"prompt": prompt.prompt, "use_case": prompt.use_case, "answers": answers}


def _scores(verdicts: Sequence[Sequence[Verdict]]) -> list[list[float]]:
    return [[verdict.score for verdict in group] for group in verdicts]
