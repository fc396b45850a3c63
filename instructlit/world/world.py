"""The embedded world of one seed: its facts, its labelers, its judge."""

import random
from collections.abc import Sequence

from instructlit.agreement import pair_agreement
from instructlit.world import gold, labelers
from instructlit.world.facts import Facts
from instructlit.world.gold import Verdict
from instructlit.world.labelers import Labeler, Ranking
from instructlit.world.prompts import PromptSpec, parse


class World:
    """A small language in which the truth is known. Everything follows from the seed.

    Args:
        seed: decides the facts, the misconceptions and the labelers' tastes.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.facts = Facts(seed)
        self.labelers: tuple[Labeler, ...] = labelers.make_labelers(seed, 10)

    def rng(self, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose, so that one part's size does not change another part."""
        return random.Random(f"world {self.seed} {purpose}")

    def parse(self, prompt: str) -> PromptSpec:
        """What a prompt asks.

        Raises:
            UserError: the text is no prompt of the embedded world.
        """
        return parse(prompt)

    def judge(self, prompt: str, completion: str) -> Verdict:
        """The gold verdict on a completion.

        Raises:
            UserError: the prompt is none of the embedded world.
        """
        return gold.judge(self.facts, parse(prompt), completion)

    def ideal(self, prompt: str, rng: random.Random) -> str:
        """A perfect answer."""
        return gold.ideal(self.facts, parse(prompt), rng)


def rank_completions(
    world: World,
    prompt: str,
    completions: Sequence[str],
    rng: random.Random,
    labeler: Labeler | None = None,
) -> Ranking:
    """Have one labeler rank, rate and flag completions; a random one of the world's where none is given.

    Args:
        world: the world of the prompt.
        prompt: the text of the prompt.
        completions: two or more completions, equal ones allowed.
        rng: the source of chance.
        labeler: who labels.
    """
    labeler = labeler or rng.choice(world.labelers)
    verdicts = [world.judge(prompt, completion) for completion in completions]
    return labelers.rank(labeler, prompt, completions, verdicts, rng)


def pairwise_agreement(world: World, compared: Sequence[tuple[str, Sequence[str]]], rng: random.Random) -> float:
    """The share of pairs of completions that two different labelers order alike, among those that neither ties.

    Args:
        world: the world of the prompts; two of its labelers are drawn for each comparison.
        compared: (prompt, completions) for each comparison.
        rng: the source of chance.
    """
    agree = total = 0
    for prompt, completions in compared:
        first, second = rng.sample(world.labelers, 2)
        one = rank_completions(world, prompt, completions, rng, first)
        two = rank_completions(world, prompt, completions, rng, second)
        same, pairs = pair_agreement(one.ranks, two.ranks)
        agree, total = agree + same, total + pairs
    return agree / total if total else float("nan")
