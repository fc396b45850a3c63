"""Simulated labelers: they write demonstrations, and they rank and rate completions, with taste and error.

A labeler's utility of a completion is the gold score seen with error: personal weights on what the gold scorer finds,
taste for length and for friendly words, slips of attention, and noise. What matters when several completions lie side
by side is how far they are apart, so the noise is a share of the spread of the gold scores in view (with a floor);
and completions of equal merit are mistaken alike, but for a small rest, so that they mostly tie. Both together keep
the agreement of two labelers at about 73 % whether the completions come from a weak model or a strong one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from instructlit.rubric import FLAGS
from instructlit.world.gold import Verdict, rating
from instructlit.world.prompts import PromptSpec, parse

NOISE = 1.06
"""Standard deviation of a labeler's error, as a share of the spread of the gold scores compared."""
NOISE_OWN = 0.02
"""The part of that error, as a share of it, that differs between completions of equal gold score."""
NOISE_FLOOR = 0.02
GRID = 0.5
"""Utilities closer than about this share of the spread tie."""
SLIP = 0.05
"""Probability that a labeler misjudges completions of one gold score altogether."""
FLAG_ERROR = 0.03

FRIENDLY = ("please", "hello", "dear", "sorry", "glad")


@dataclass(frozen=True)
class Labeler:
    """One labeler.

    Args:
        name: an id such as `labeler-03`.
        skill: the probability that a demonstration by this labeler is right.
        length: the change in utility for each word of a completion.
        friendly: the change in utility for a friendly word.
        strict: how much more (or less) than others this labeler minds what the gold scorer takes off.
    """

    name: str
    skill: float
    length: float
    friendly: float
    strict: float


@dataclass(frozen=True)
class Ranking:
    """A comparison of K completions, with the fields of its record. Rank 1 is best, equal ties."""

    prompt: str
    completions: list[str]
    ranks: list[int]
    labeler: str
    ratings: list[int]
    flags: list[dict[str, bool]]
    use_case: str

    def record(self) -> dict:
        """The row as the file format has it."""
        return vars(self).copy()


def make_labelers(seed: int, count: int) -> tuple[Labeler, ...]:
    """A team whose skill is spread from careful to sloppy."""
    rng = random.Random(f"labeler {seed}")
    labelers = []
    for i in range(count):
        skill = 0.9 - 0.5 * i / max(1, count - 1)
        taste = (rng.gauss(0, 0.004), rng.gauss(0, 0.02), 1 + rng.gauss(0, 0.15))
        labelers.append(Labeler(f"labeler-{i + 1:02d}", skill, *taste))
    return tuple(labelers)


def rank(
    labeler: Labeler, prompt: str, completions: Sequence[str], verdicts: Sequence[Verdict], rng: random.Random
) -> Ranking:
    """Rank and rate completions as one labeler. Equal texts get equal utilities.

    Raises:
        UserError: the prompt is not one of the embedded world.
    """
    spec = parse(prompt)
    scores = {text: verdict.score for text, verdict in zip(completions, verdicts, strict=True)}
    spread = _deviation(list(scores.values()))
    noise = max(NOISE_FLOOR, NOISE * spread)
    seen = {score: _see_score(labeler, score, noise, rng) for score in dict.fromkeys(scores.values())}
    utility = {
        text: seen[score] + _taste(labeler, text) + rng.gauss(0, NOISE_OWN * noise) for text, score in scores.items()
    }
    grid = max(0.01, GRID * max(spread, NOISE_FLOOR))
    steps = {text: round(value / grid) for text, value in utility.items()}
    order = sorted(set(steps.values()), reverse=True)
    return Ranking(
        prompt=prompt,
        completions=list(completions),
        ranks=[order.index(steps[text]) + 1 for text in completions],
        labeler=labeler.name,
        ratings=[rating(utility[text]) for text in completions],
        flags=[_see_flags(verdict, spec, rng) for verdict in verdicts],
        use_case=spec.use_case,
    )


def _see_score(labeler: Labeler, score: float, noise: float, rng: random.Random) -> float:
    if rng.random() < SLIP:
        return rng.random()
    return 1 - labeler.strict * (1 - score) + rng.gauss(0, noise)


def _taste(labeler: Labeler, text: str) -> float:
    words = text.split()
    return labeler.length * len(words) + labeler.friendly * any(word in words for word in FRIENDLY)


def _see_flags(verdict: Verdict, spec: PromptSpec, rng: random.Random) -> dict[str, bool]:
    """The flags as a labeler ticks them: now and then one of those that could apply is wrong."""
    errors = {name: rng.random() < FLAG_ERROR for name in FLAGS[:4]}
    errors["satisfies_constraint"] &= bool(spec.constraints)
    errors["hallucination"] &= spec.task.closed
    return {name: value != errors.get(name, False) for name, value in verdict.flags.items()}


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
