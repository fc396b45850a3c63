"""Simulated customers: who sends which prompts, and to which split they go.

A customer sends one to a few dozen prompts, half of them for a favourite use case, some of them near duplicates of the
one before or the same again. Splits are by customer, and a prompt text that opens like one of the held-out splits
(`PromptSpec.near_key`) is never sent by a customer of a training split, so near duplicates do not cross either.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from instructlit.world.prompts import PromptSpec, sample_spec, sample_use_case, vary

HELD_OUT = {"test": range(15), "validation": range(15, 20)}
"""Hundredths of all prompt openings that belong to the held-out splits; the others belong to the training splits."""
NEAR_DUPLICATE, SAME_AGAIN, ASKS_RESPECT = 0.12, 0.04, 0.03


@dataclass(frozen=True)
class Request:
    """A prompt with the customer who sent it."""

    spec: PromptSpec
    user: str

    def record(self) -> dict[str, str]:
        """The row as the file format has it."""
        return {"prompt": self.spec.render(), "user": self.user, "use_case": self.spec.use_case}


def split_of(spec: PromptSpec) -> str:
    """`test`, `validation` or `train`: the splits that a prompt may belong to, by its opening."""
    slot = zlib.crc32(spec.near_key.encode()) % 100
    return next((name for name, slots in HELD_OUT.items() if slot in slots), "train")


def requests(rng: random.Random, split: str, mean: float, name: str) -> Iterator[Request]:
    """The endless stream of prompts of a split.

    Args:
        rng: the source of chance.
        split: `train`, `validation` or `test`, as `split_of` says.
        mean: the mean number of prompts of a customer.
        name: the first part of the user ids, different for each file of prompts.
    """
    number = 0
    while True:
        number += 1
        user, favourite = f"{name}-{number:04d}", sample_use_case(rng)
        yield from _customer(rng, split, mean, user, favourite)


def _customer(rng: random.Random, split: str, mean: float, user: str, favourite: str) -> Iterator[Request]:
    spec: PromptSpec | None = None
    for _ in range(min(60, 1 + int(rng.expovariate(1 / max(1e-9, mean - 0.5))))):
        draw = rng.random()
        if spec is not None and draw < SAME_AGAIN:
            pass
        elif spec is not None and draw < SAME_AGAIN + NEAR_DUPLICATE:
            spec = vary(rng, spec)
        else:
            spec = _fresh(rng, split, favourite if rng.random() < 0.5 else None)
        yield Request(spec, user)


def _fresh(rng: random.Random, split: str, use_case: str | None) -> PromptSpec:
    case = use_case or sample_use_case(rng)
    while True:
        spec = sample_spec(rng, case)
        if split_of(spec) == split:
            return replace(spec, respectful=rng.random() < ASKS_RESPECT)
