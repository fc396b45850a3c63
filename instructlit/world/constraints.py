"""Explicit constraints: how a prompt words them, how an answer is made to satisfy them, and whether it does.

A constraint is a pair (name, value); the value is empty where the name says all.
"""

import random
import re

from instructlit.world import lexicon
from instructlit.world.answer import Answer

Constraint = tuple[str, str]

COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
START_WORDS = ("once", "today", "well")
END_WORDS = ("please", "indeed", "thanks")
MENTION_WORDS = lexicon.THINGS + lexicon.SPOTS

PHRASES: dict[str, str] = {
    "capitals": "in capitals .",
    "words": "in {} words .",
    "sentences": "in {} sentences .",
    "items": "{} items .",
    "start": "start with {} .",
    "end": "end with {} .",
    "mention": "use the word {} .",
}
VALUES: dict[str, tuple[str, ...]] = {
    "capitals": ("",),
    "words": ("one", "two", "three"),
    "sentences": ("one", "two"),
    "items": ("two", "three", "four"),
    "start": START_WORDS,
    "end": END_WORDS,
    "mention": MENTION_WORDS,
}
GROUP = {"capitals": 0, "start": 0, "end": 0, "mention": 0, "words": 1, "sentences": 1, "items": 1}
"""Two constraints of one prompt come from different groups, so that both can be satisfied."""


def phrase(constraint: Constraint) -> str:
    """The sentence that asks for the constraint."""
    name, value = constraint
    return _singular(PHRASES[name].format(value))


def _singular(text: str) -> str:
    return text.replace("one words", "one word").replace("one sentences", "one sentence")


_PHRASE_TO_CONSTRAINT = {phrase((name, v)): (name, v) for name, values in VALUES.items() for v in values}
_ALTERNATIVES = "|".join(re.escape(text) for text in _PHRASE_TO_CONSTRAINT)
PATTERN = rf"(?P<constraints>(?: (?:{_ALTERNATIVES}))*)"
_ONE = re.compile(_ALTERNATIVES)


def parse(text: str) -> tuple[Constraint, ...]:
    """The constraints in a run of their phrases."""
    return tuple(_PHRASE_TO_CONSTRAINT[found] for found in _ONE.findall(text))


def satisfied(constraint: Constraint, answer: Answer, items: int) -> float:
    """How far an answer keeps a constraint: 1 is wholly, and only counts of items give partial credit.

    Args:
        constraint: the constraint.
        answer: the completion.
        items: the number of distinct items that the completion lists.
    """
    name, value = constraint
    if not answer.content:
        return 0.0
    if name == "capitals":
        upper = any(word in lexicon.LOWER for word in answer.raw)
        return float(upper and not any(word in lexicon.CAPITALS for word in answer.raw))
    if name == "words":
        return float(len(answer.content) == COUNTS[value])
    if name == "sentences":
        return float(answer.ended and answer.sentences == COUNTS[value])
    if name == "items":
        return max(0.0, 1 - abs(items - COUNTS[value]) / COUNTS[value])
    if name == "start":
        return float(answer.content[0] == value)
    if name == "end":
        return float(answer.content[-1] == value)
    return float(value in answer.have)


def wanted(constraints: tuple[Constraint, ...], name: str) -> int | None:
    """The number that a counting constraint asks for, or None where it is not among the constraints."""
    for found, value in constraints:
        if found == name:
            return COUNTS[value]
    return None


def impose(words: list[str], constraints: tuple[Constraint, ...], rng: random.Random) -> list[str]:
    """Change an answer so that it keeps the constraints that do not count anything."""
    words = list(words)
    for name, value in constraints:
        if name == "capitals":
            words = [lexicon.CAPITALS.get(word, word) for word in words]
        elif name == "start":
            words = [value, ",", *words] if words[0] != value else words
        elif name == "end":
            words = [*words[:-1], ",", value, "."] if words[-1] in lexicon.ENDS else [*words, ",", value, "."]
        elif name == "mention" and value not in words:
            link = rng.choice(("by the", "with the")) if value in lexicon.THINGS else "at the"
            words = [*words[:-1], *link.split(), value, words[-1]]
    return words
