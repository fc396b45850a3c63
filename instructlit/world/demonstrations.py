"""Demonstrations: answers that labelers of uneven skill wrote to customers' prompts."""

import random
from collections.abc import Iterator, Sequence

from instructlit.world.candidates import answer
from instructlit.world.customers import Request
from instructlit.world.facts import Facts
from instructlit.world.labelers import Labeler


def demonstrations(
    facts: Facts, labelers: Sequence[Labeler], asked: Iterator[Request], rng: random.Random, count: int
) -> Iterator[dict[str, str]]:
    """`count` demonstration records; each labeler writes about as many as the others."""
    for _ in range(count):
        request, labeler = next(asked), rng.choice(labelers)
        completion = answer(facts, request.spec, rng, labeler.skill)
        yield {**request.record(), "completion": completion, "labeler": labeler.name}
