"""Lists, and work on a given text: brainstorming, rewriting, summarising, extracting."""

import random
from dataclasses import dataclass

from instructlit.world import lexicon
from instructlit.world.answer import Answer
from instructlit.world.constraints import Constraint, wanted
from instructlit.world.facts import Facts
from instructlit.world.tasks.base import Slots, Task

ITEMS = {"capitals": None, "items": None}


def join(items: list[str], rng: random.Random) -> str:
    """`a , b , c .` or `a , b and c .`"""
    if len(items) > 1 and rng.random() < 0.4:
        return f"{' , '.join(items[:-1])} and {items[-1]} ."
    return f"{' , '.join(items)} ."


@dataclass(frozen=True, eq=False)
class Listing(Task):
    """Ideas of one category, all of which are right unless `groups` says which belong to the word of `slot`."""

    category: str = ""
    slot: str = ""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def members(self, slots: Slots) -> tuple[str, ...]:
        """The words that are right items."""
        words = dict(self.groups)[slots[self.slot]] if self.groups else lexicon.CATEGORIES[self.category]
        return tuple(word for word in words if word not in slots.values())

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        count = wanted(constraints, "items") or rng.choice((2, 3, 3, 4))
        return join(rng.sample(self.members(slots), count), rng)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        said, members = answer.of(self.category), self.members(slots)
        right = sum(word in members for word in said)
        if not said:
            return 0.0, 0.0
        return 0.5 * min(len(said), 2), right / len(said) * min(1.0, right / 2)

    def items(self, slots: Slots, answer: Answer) -> int:
        return len(answer.of(self.category))


class Polite(Task):
    """Make a demand polite."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        demand = f"{slots['demand']} the {slots['thing']}"
        return rng.choice((f"please {demand} .", f"could you {demand} , please ?"))

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        verb = slots["demand"].split()[0]
        thing = answer.of("thing") == [slots["thing"]]
        quality = 0.5 * answer.has("please") + 0.3 * answer.has(verb) + 0.2 * thing
        return 0.5 * answer.has(slots["thing"]) + 0.5 * answer.any((verb, "please")), quality * bool(answer.of("thing"))


class Swap(Task):
    """Put one person in the place of another."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        return f"{slots['person_b']} gave the {slots['thing']} to a {slots['job']} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        attempt = answer.has(slots["thing"], slots["job"])
        people = answer.of("person")
        quality = 0.8 * (people == [slots["person_b"]]) + 0.2 * answer.has("gave")
        return attempt, quality * attempt


class Past(Task):
    """Move a sentence into the past."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        return f"the {slots['animal']} {lexicon.PASTS[slots['present']]} the {slots['food']} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        attempt = answer.has(slots["animal"], slots["food"])
        right = lexicon.PASTS[slots["present"]] in answer.have and slots["present"] not in answer.have
        return attempt, (0.7 * right + 0.3) * attempt


class Summary(Task):
    """Say a text of three sentences in one short one."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        person, animal, food, spot = (slots[name] for name in ("person", "animal", "food", "spot"))
        return rng.choice(
            (
                f"{person} met a {animal} and bought {food} .",
                f"{person} bought {food} at the {spot} .",
                f"{person} met a {animal} at the {spot} .",
            )
        )

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        told = sum(slots[name] in answer.have for name in ("animal", "food", "spot"))
        person = answer.has(slots["person"])
        alone = answer.of("person") == [slots["person"]]
        short = max(0.0, 1 - max(0, len(answer.content) - 8) / 8)
        return 0.5 * person + 0.5 * bool(told), 0.5 * min(told, 2) * (0.7 + 0.3 * alone) * short


@dataclass(frozen=True, eq=False)
class Extract(Task):
    """Take the words of one category out of a sentence."""

    category: str = ""

    def expected(self, slots: Slots) -> list[str]:
        """The words to find."""
        return [word for word in slots.values() if word in lexicon.CATEGORIES[self.category]]

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        return join(self.expected(slots), rng)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        said, expected = answer.of(self.category), self.expected(slots)
        if not said:
            return 0.0, 0.0
        others = sum(word in lexicon.ENTITIES and word not in said for word in answer.have)
        right = sum(word in expected for word in said)
        return 1.0, 2 * right / (len(said) + others + len(expected))


_NEWS = "{person} went to the {spot} . {person} met a {adjective} {animal} . then {person} bought {food} ."

TASKS: tuple[Task, ...] = (
    Listing(
        "list_animals",
        "brainstorming",
        (
            "list animals that live in the {habitat} .",
            "name some animals of the {habitat} .",
            "which animals live in the {habitat} ?",
        ),
        ITEMS,
        constrained=0.5,
        weight=1.4,
        category="animal",
        slot="habitat",
        groups=tuple(lexicon.HABITATS.items()),
    ),
    Listing(
        "list_foods",
        "brainstorming",
        (
            "list {taste} foods for {person} .",
            "what {taste} food can {person} cook ?",
            "{taste} food ideas for {person} ?",
        ),
        ITEMS,
        constrained=0.5,
        weight=1.2,
        category="food",
        slot="taste",
        groups=tuple(lexicon.TASTES.items()),
    ),
    Listing(
        "list_gifts",
        "brainstorming",
        ("list gifts for a {job} .", "what can i give to a {job} ?", "gift ideas for a {job} ?"),
        ITEMS,
        constrained=0.5,
        category="thing",
    ),
    Listing(
        "list_names",
        "brainstorming",
        ("suggest names for my {animal} .", "how can i call my {animal} ?", "names for a {animal} ?"),
        ITEMS,
        constrained=0.5,
        category="person",
    ),
    Polite(
        "rewrite_polite",
        "rewrite",
        ("rewrite politely : {demand} the {thing} .", "make this polite : {demand} the {thing} ."),
        {},
        limit=10,
        closed=True,
    ),
    Swap(
        "rewrite_swap",
        "rewrite",
        (
            "rewrite with {person_b} instead of {person_a} : {person_a} gave the {thing} to a {job} .",
            "put {person_b} in the place of {person_a} : {person_a} gave the {thing} to a {job} .",
        ),
        {"end": None},
        limit=11,
        closed=True,
    ),
    Past(
        "rewrite_past",
        "rewrite",
        (
            "rewrite in the past : the {animal} {present} the {food} .",
            "change to the past : the {animal} {present} the {food} .",
        ),
        {"end": None},
        limit=10,
        closed=True,
    ),
    Summary(
        "summarize",
        "summarization",
        (
            f"summarize : {_NEWS}",
            f"text : {_NEWS} sum it up .",
        ),
        {"start": None, "end": None},
        limit=11,
        closed=True,
    ),
    Extract(
        "extract_names",
        "extraction",
        (
            "extract the names : {person_a} and {person_b} saw a {animal} at the {spot} .",
            "which names are in this : {person_a} and {person_b} saw a {animal} at the {spot} .",
        ),
        {"capitals": None},
        limit=6,
        closed=True,
        category="person",
    ),
    Extract(
        "extract_animals",
        "extraction",
        (
            "extract the animals : {person} saw a {animal_a} , a {animal_b} and a {thing} .",
            "which animals are in this : {person} saw a {animal_a} , a {animal_b} and a {thing} .",
        ),
        {"capitals": None},
        limit=6,
        closed=True,
        category="animal",
    ),
)
