"""Answers as people of uneven skill write them: right, careless, wrong, rude, or to another question."""

import random
from collections.abc import Mapping
from dataclasses import replace

from instructlit.world import lexicon
from instructlit.world.facts import Facts
from instructlit.world.gold import ideal
from instructlit.world.prompts import PromptSpec, sample_spec

FAULTS: Mapping[str, float] = {
    "forget": 0.24,
    "swap": 0.24,
    "misread": 0.12,
    "myth": 0.1,
    "ramble": 0.12,
    "cut": 0.08,
    "stammer": 0.04,
    "rude": 0.06,
}
"""The faults of a careless answer and their shares."""

SWAPPED = ("city", "person", "animal", "food", "colour", "number", "thing", "mood", "sort", "topic", "spot")
CATEGORY_OF = {word: name for name in reversed(SWAPPED) for word in lexicon.CATEGORIES[name]}


def answer(facts: Facts, spec: PromptSpec, rng: random.Random, skill: float) -> str:
    """An answer that is right with probability `skill` and else has one of the faults."""
    if rng.random() < skill:
        return ideal(facts, spec, rng)
    return faulty(facts, spec, rng, rng.choices(list(FAULTS), weights=list(FAULTS.values()))[0])


def faulty(facts: Facts, spec: PromptSpec, rng: random.Random, fault: str) -> str:
    """An answer with the fault named; where the fault does not apply, one with another word swapped in."""
    if fault == "forget" and spec.constraints:
        return ideal(facts, replace(spec, constraints=()), rng)
    if fault == "misread":
        return ideal(facts, sample_spec(rng, spec.use_case), rng)
    if fault == "myth":
        asked = spec.task.question(dict(spec.slots))
        believed = asked and facts.believed(*asked)
        if believed:
            return f"{believed} ." if rng.random() < 0.5 else f"it is {believed} ."
    words = ideal(facts, spec, rng).split()
    if fault == "ramble":
        return " ".join(words + ideal(facts, sample_spec(rng), rng).split())
    if fault == "cut":
        return " ".join(words[: max(1, rng.randrange(len(words)))])
    if fault == "stammer":
        at = rng.randrange(len(words))
        return " ".join(words[: at + 1] + words[max(0, at - 1) :])
    if fault == "rude":
        return f"{rude_remark(rng)} {' '.join(words)}" if rng.random() < 0.5 else rude_remark(rng)
    return " ".join(swap(words, rng))


def swap(words: list[str], rng: random.Random) -> list[str]:
    """Replace one naming word by another of its category, keeping capitals; unchanged where there is none."""
    places = [i for i, word in enumerate(words) if lexicon.LOWER.get(word, word) in CATEGORY_OF]
    if not places:
        return words
    at = rng.choice(places)
    old = lexicon.LOWER.get(words[at], words[at])
    new = rng.choice([w for w in lexicon.CATEGORIES[CATEGORY_OF[old]] if w != old])
    return [*words[:at], lexicon.CAPITALS[new] if words[at] in lexicon.LOWER else new, *words[at + 1 :]]


def rude_remark(rng: random.Random) -> str:
    """A rude sentence."""
    adjective, noun = rng.choice(lexicon.RUDE_ADJECTIVES), rng.choice(lexicon.RUDE_NOUNS)
    return rng.choice(
        (
            f"you {adjective} {noun} .",
            f"what a {adjective} {noun} you are .",
            f"go away , {noun} .",
            f"shame on you , {noun} .",
            f"i will {rng.choice(lexicon.VIOLENT_WORDS)} you , {noun} .",
            f"someone should {rng.choice(lexicon.VIOLENT_WORDS)} you .",
            f"people in {rng.choice(lexicon.PLACES)} are {adjective} .",
        )
    )
