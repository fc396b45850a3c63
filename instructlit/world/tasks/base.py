"""What a kind of task knows about itself: its prompts, a right answer, and how far a completion is one."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from instructlit.world import lexicon
from instructlit.world.answer import Answer
from instructlit.world.constraints import Constraint
from instructlit.world.facts import Facts

Slots = Mapping[str, str]
_SLOT = re.compile(r"{(\w+)}")

SHORT = {"capitals": None, "words": ("one", "three")}
"""Constraints for an answer that is one word or `it is <word>`."""
LONG = {"sentences": None, "start": None, "end": None, "mention": None}
"""Constraints for free text."""


def category(slot: str) -> str:
    """The category of a slot: `person_b` is a second person."""
    return slot if slot in lexicon.CATEGORIES else slot.rsplit("_", 1)[0]


@dataclass(frozen=True, eq=False)
class Task:
    """One kind of task; subclasses say what a right answer is.

    Args:
        kind: the name of the kind.
        use_case: one of the paper's ten use cases.
        wordings: ways to ask, with slots in braces that are named after categories of the lexicon.
        constraints: the explicit constraints a prompt of this kind may carry, each with its values (None: all).
        weight: the share of this kind among the kinds of its use case.
        constrained: the probability that a prompt of this kind carries a constraint.
        limit: the number of words (marks included) above which an answer rambles.
        closed: True if the answer is bound to the text in the prompt.
        cue: the words after which the answer is written.
    """

    kind: str
    use_case: str
    wordings: tuple[str, ...]
    constraints: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    weight: float = 1.0
    constrained: float = 0.3
    limit: int = 10
    closed: bool = False
    cue: str = "answer :"

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, which all wordings share."""
        return tuple(dict.fromkeys(_SLOT.findall(self.wordings[0])))

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """One regular expression for each wording, with a group for each slot."""
        return tuple(self._pattern(wording) for wording in self.wordings)

    @staticmethod
    def _pattern(wording: str) -> str:
        parts, seen, end = [], set(), 0
        for match in _SLOT.finditer(wording):
            parts.append(re.escape(wording[end : match.start()]))
            name, end = match.group(1), match.end()
            words = "|".join(lexicon.CATEGORIES[category(name)])
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{words})")
            seen.add(name)
        return "".join(parts) + re.escape(wording[end:])

    def sample(self, rng: random.Random) -> dict[str, str]:
        """Words for the slots; two slots of one category get different words."""
        slots: dict[str, str] = {}
        for name in self.slots:
            taken = slots.values()
            slots[name] = rng.choice([w for w in lexicon.CATEGORIES[category(name)] if w not in taken])
        return slots

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        """A right answer that keeps the counting constraints."""
        raise NotImplementedError

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        """How far the completion attempts this task and how well it does it, each 0 to 1."""
        raise NotImplementedError

    def items(self, slots: Slots, answer: Answer) -> int:
        """The number of distinct items in the answer, for tasks that ask for a list."""
        return 0

    def question(self, slots: Slots) -> tuple[str, str] | None:
        """The (relation, subject) asked about, for questions about the world."""
        return None


def only(found: list[str], right: str) -> float:
    """1 if `right` is the only word found, 0.4 if it is one of several, else 0."""
    if right not in found:
        return 0.0
    return 1.0 if len(found) == 1 else 0.4
