"""What is true in a world, and what people wrongly believe there.

Six relations (the capital of a place, the food of an animal, ...) get a random value for every subject, so that two
seeds differ in their truth. A share of the facts carries a *misconception*: one false value that the corpus repeats
more often than the truth.
"""

import random
from dataclasses import dataclass

from instructlit.world import lexicon

MISCONCEPTION_SHARE = 0.4


@dataclass(frozen=True)
class Relation:
    """A kind of fact: `subject` and `value` are categories of the lexicon, the texts have the slots {s} and {v}."""

    name: str
    subject: str
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS = (
    Relation(
        "capital",
        "place",
        "city",
        ("the capital of {s} is {v} .", "{v} is the capital of {s} ."),
        (
            "what is the capital of {s} ?",
            "name the capital of {s} .",
            "which city is the capital of {s} ?",
            "tell me the capital of {s} .",
            "do you know the capital of {s} ?",
            "the capital of {s} is which city ?",
        ),
    ),
    Relation(
        "flag",
        "place",
        "colour",
        ("the flag of {s} is {v} .", "{s} has a {v} flag ."),
        (
            "what colour is the flag of {s} ?",
            "name the colour of the flag of {s} .",
            "which colour has the flag of {s} ?",
            "tell me the flag colour of {s} .",
            "do you know the colour of the flag of {s} ?",
            "the flag of {s} has which colour ?",
        ),
    ),
    Relation(
        "dish",
        "place",
        "food",
        ("the dish of {s} is {v} .", "people in {s} love {v} ."),
        (
            "what is the dish of {s} ?",
            "name the dish of {s} .",
            "which food do people in {s} love ?",
            "tell me what people in {s} love .",
            "do you know the dish of {s} ?",
            "the dish of {s} is which food ?",
        ),
    ),
    Relation(
        "diet",
        "animal",
        "food",
        ("the {s} eats {v} .", "{v} is what the {s} eats ."),
        (
            "what does the {s} eat ?",
            "name the food of the {s} .",
            "which food does the {s} eat ?",
            "tell me what the {s} eats .",
            "do you know what the {s} eats ?",
            "the {s} eats which food ?",
        ),
    ),
    Relation(
        "young",
        "animal",
        "number",
        ("the {s} has {v} young .", "a {s} has {v} young ."),
        (
            "how many young has the {s} ?",
            "how many young does a {s} have ?",
            "name the number of young of the {s} .",
            "tell me how many young the {s} has .",
            "do you know how many young the {s} has ?",
            "the {s} has how many young ?",
        ),
    ),
    Relation(
        "maker",
        "thing",
        "person",
        ("the maker of the {s} is {v} .", "{v} made the {s} ."),
        (
            "who made the {s} ?",
            "name the maker of the {s} .",
            "which person made the {s} ?",
            "tell me who made the {s} .",
            "do you know who made the {s} ?",
            "the maker of the {s} is which person ?",
        ),
    ),
)
RELATION = {relation.name: relation for relation in RELATIONS}


class Facts:
    """The truth of the world of one seed: `truth[relation][subject]`, `myth` likewise for the believed false values."""

    def __init__(self, seed: int):
        rng = random.Random(f"facts {seed}")
        self.truth: dict[str, dict[str, str]] = {}
        self.myth: dict[str, dict[str, str]] = {}
        for relation in RELATIONS:
            subjects = list(lexicon.CATEGORIES[relation.subject])
            values = list(lexicon.CATEGORIES[relation.value])
            rng.shuffle(values)
            deal = [values[i % len(values)] for i in range(len(subjects))]
            rng.shuffle(deal)
            self.truth[relation.name] = dict(zip(subjects, deal, strict=True))
            believed = rng.sample(subjects, round(MISCONCEPTION_SHARE * len(subjects)))
            self.myth[relation.name] = {
                s: rng.choice([v for v in values if v != self.truth[relation.name][s]]) for s in sorted(believed)
            }

    def pairs(self) -> list[tuple[str, str]]:
        """Every (relation name, subject), in a fixed order."""
        return [(name, subject) for name, table in self.truth.items() for subject in table]

    def believed(self, relation: str, subject: str) -> str | None:
        """The misconception about a subject, where there is one."""
        return self.myth[relation].get(subject)
