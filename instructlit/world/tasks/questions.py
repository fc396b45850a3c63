"""Questions: about the world (open), about a context (closed), and the odd ones (classification, other)."""

import random
from dataclasses import dataclass

from instructlit.world import lexicon
from instructlit.world.answer import Answer
from instructlit.world.constraints import Constraint, wanted
from instructlit.world.facts import RELATION, RELATIONS, Facts
from instructlit.world.tasks.base import SHORT, Slots, Task, only


def _short(value: str, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
    """`value .` or `it is value .`, as the number of words asks."""
    count = wanted(constraints, "words")
    if count == 3 or (count is None and rng.random() < 0.3):
        return f"it is {value} ."
    return f"{value} ."


@dataclass(frozen=True, eq=False)
class WorldQuestion(Task):
    """A question about one fact of the world."""

    relation: str = ""

    def question(self, slots: Slots) -> tuple[str, str]:
        return self.relation, slots[RELATION[self.relation].subject]

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        relation, subject = self.question(slots)
        value = facts.truth[relation][subject]
        if wanted(constraints, "words") is None and rng.random() < 0.3:
            return RELATION[relation].statements[0].format(s=subject, v=value)
        return _short(value, constraints, rng)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        relation, subject = self.question(slots)
        values = answer.of(RELATION[relation].value)
        if not values:
            return (0.5, 0.3) if answer.unknowing else (0.0, 0.0)
        return 1.0, only(values, facts.truth[relation][subject])


@dataclass(frozen=True, eq=False)
class ContextQuestion(Task):
    """A question whose answer is the word of one slot; nothing else of that category may be said."""

    value: str = ""
    category: str = ""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        return _short(slots[self.value], constraints, rng)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        values = answer.of(self.category)
        return float(bool(values)), only(values, slots[self.value])


@dataclass(frozen=True, eq=False)
class Label(Task):
    """A question with one right word out of a few, given by `table` from the word of `slot`."""

    slot: str = ""
    table: tuple[tuple[str, str], ...] = ()

    def right(self, slots: Slots) -> str:
        """The right word."""
        return dict(self.table)[slots[self.slot]]

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        return _short(self.right(slots), constraints, rng)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        labels = frozenset(value for _, value in self.table)
        said = [word for word in dict.fromkeys(answer.content) if word in labels]
        return float(bool(said)), only(said, self.right(slots))


@dataclass(frozen=True, eq=False)
class Repeat(Task):
    """Say one word a number of times."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        count = lexicon.NUMBERS.index(slots["times"]) + 1
        return " ".join([slots["thing"]] * count) + " ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        count = lexicon.NUMBERS.index(slots["times"]) + 1
        said = answer.content.count(slots["thing"])
        if not said:
            return 0.0, 0.0
        purity = said / len(answer.content)
        return 1.0, purity * max(0.0, 1 - abs(said - count) / count)


_CONTEXT = (
    "context : {person_a} met a {animal} at the {spot} . {person_b} has a {thing} . question : ",
    "read this : {person_a} met a {animal} at the {spot} . {person_b} has a {thing} . question : ",
)


def _closed(kind: str, questions: tuple[str, ...], value: str, category: str) -> ContextQuestion:
    wordings = tuple(context + question for context in _CONTEXT for question in questions)
    return ContextQuestion(kind, "closed_qa", wordings, SHORT, limit=8, closed=True, value=value, category=category)


def _counterfactual(relation_name: str) -> ContextQuestion:
    relation = RELATION[relation_name]
    s, v = f"{{{relation.subject}}}", f"{{{relation.value}}}"
    fact, question = relation.statements[0].format(s=s, v=v), relation.questions[0].format(s=s)
    wordings = (
        f"context : from today {fact} question : {question}",
        f"read this : since june {fact} question : {question}",
    )
    kind = f"closed_{relation_name}"
    value = relation.value
    return ContextQuestion(
        kind, "closed_qa", wordings, SHORT, weight=0.7, limit=8, closed=True, value=value, category=value
    )


def _world_question(relation_name: str, weight: float) -> WorldQuestion:
    relation = RELATION[relation_name]
    wordings = tuple(q.format(s=f"{{{relation.subject}}}") for q in relation.questions)
    return WorldQuestion(
        f"open_{relation_name}", "open_qa", wordings, SHORT, weight=weight, limit=8, relation=relation_name
    )


_FEELINGS = tuple((w, "happy") for w in lexicon.HAPPY_VERBS) + tuple((w, "sad") for w in lexicon.SAD_VERBS)
_SORTS = tuple(
    (word, sort)
    for sort, words in (("animal", lexicon.ANIMALS), ("food", lexicon.FOODS), ("colour", lexicon.COLOURS))
    for word in words
)
_AFTER = tuple(zip(lexicon.NUMBERS[:-1], lexicon.NUMBERS[1:], strict=True))

TASKS: tuple[Task, ...] = (
    *(_world_question(r.name, len(lexicon.CATEGORIES[r.subject])) for r in RELATIONS),
    _closed("closed_who", ("who met the {animal} ?", "who saw the {animal} ?"), "person_a", "person"),
    _closed("closed_where", ("where was the {animal} ?", "where did they meet ?"), "spot", "spot"),
    _closed("closed_what", ("what has {person_b} ?", "what does {person_b} have ?"), "thing", "thing"),
    *(_counterfactual(name) for name in ("capital", "flag", "diet")),
    Label(
        "classify_mood",
        "classification",
        (
            "is this happy or sad : {person} {feeling} at the {spot} .",
            "classify the mood : {person} {feeling} at the {spot} . happy or sad ?",
            "{person} {feeling} at the {spot} . is the mood happy or sad ?",
        ),
        SHORT,
        limit=6,
        slot="feeling",
        table=_FEELINGS,
    ),
    Label(
        "classify_sort",
        "classification",
        (
            "is {sortable} an animal , a food or a colour ?",
            "classify the word {sortable} : animal , food or colour ?",
            "animal , food or colour : {sortable} .",
        ),
        SHORT,
        limit=6,
        slot="sortable",
        table=_SORTS,
    ),
    Repeat(
        "other_repeat",
        "other",
        (
            "repeat the word {thing} {times} times .",
            "say {thing} {times} times .",
            "say the word {thing} {times} times .",
        ),
        {"capitals": None},
        limit=6,
    ),
    Label(
        "other_next",
        "other",
        ("what number comes after {before} ?", "which number follows {before} ?", "count on from {before} ."),
        SHORT,
        limit=6,
        slot="before",
        table=_AFTER,
    ),
    Label(
        "other_opposite",
        "other",
        (
            "what is the opposite of {opposite} ?",
            "name the opposite of {opposite} .",
            "give me the reverse of {opposite} .",
        ),
        {"words": ("one", "three")},
        limit=6,
        slot="opposite",
        table=tuple(lexicon.OPPOSITES.items()),
    ),
)
