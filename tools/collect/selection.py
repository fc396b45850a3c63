"""Selection of the prompts that are worth a labeler's time."""

import math
import random
from collections.abc import Sequence
from itertools import combinations, zip_longest
from typing import Literal

from instructlit.errors import UserError
from instructlit.types import Prompt


def chosen(
    prompts: Sequence[Prompt],
    select: Literal["random", "use_case", "disagreement"],
    limit: int | None,
    pool: int | None,
    use_cases: Sequence[str] | None,
    seed: int,
) -> list[int]:
    """Indices of the prompts to answer; with `disagreement`, those of the pool to select from.

    Args:
        prompts: all prompts.
        select: as for the command, like the other arguments.
    """
    places = of_use_cases(prompts, use_cases) if use_cases else list(range(len(prompts)))
    rng = random.Random(f"collect {seed} prompts")
    if select == "use_case" and limit is not None:
        return evenly(prompts, places, limit, rng)
    count = limit if select == "random" else pool
    return places if count is None else at_random(places, count, rng)


def of_use_cases(prompts: Sequence[Prompt], wanted: Sequence[str]) -> list[int]:
    """Indices of the prompts with one of the named use cases.

    Raises:
        UserError: if no prompt has one of them.
    """
    there = {prompt.use_case for prompt in prompts if prompt.use_case}
    for name in wanted:
        if name not in there:
            raise UserError(
                f"no prompt has the use case {name!r}",
                where="--use_cases",
                expected=f"use cases among {', '.join(sorted(there))}" if there else "prompts with a `use_case` field",
            )
    return [place for place, prompt in enumerate(prompts) if prompt.use_case in wanted]


def at_random(places: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """`count` of the places, in their original order."""
    return sorted(rng.sample(list(places), min(count, len(places))))


def evenly(prompts: Sequence[Prompt], places: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """`count` of the places, as equally as possible from each use case, in their original order.

    A use case with few prompts contributes all of them; the others then contribute more.
    """
    groups: dict[str | None, list[int]] = {}
    for place in places:
        groups.setdefault(prompts[place].use_case, []).append(place)
    for group in groups.values():
        rng.shuffle(group)
    dealt = [place for turn in zip_longest(*groups.values()) for place in turn if place is not None]
    return sorted(dealt[:count])


def most_disputed(places: Sequence[int], scores: Sequence[Sequence[Sequence[float]]], limit: int) -> list[int]:
    """`limit` of the places, those with the most disagreement, in order.

    Args:
        places: of the prompts to choose from.
        scores: for each model, the scores of every prompt's completions, by place.
        limit: number to select.
    """
    value = {place: disagreement([model[place] for model in scores]) for place in places}
    return sorted(sorted(places, key=lambda place: (-value[place], place))[:limit])


def disagreement(scores: Sequence[Sequence[float]]) -> float:
    """Disagreement of an ensemble of reward models on a prompt's completions, from 0 (full agreement) to 0.5.

    For every pair of completions, each model gives a probability that the first is preferred, sigmoid(difference of
    scores); their standard deviation over the models is averaged over the pairs. Shifting the scores changes nothing.

    Args:
        scores: for each model, the scores of the K completions.
    """
    pairs = list(combinations(range(len(scores[0])), 2))
    if not pairs:
        return 0.0
    return sum(_deviation([_sigmoid(own[i] - own[j]) for own in scores]) for i, j in pairs) / len(pairs)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
