"""Free text: stories, letters, advertisements, poems, sentences to finish, and chat."""

import random

from instructlit.world import lexicon
from instructlit.world.answer import Answer
from instructlit.world.constraints import Constraint, wanted
from instructlit.world.facts import Facts
from instructlit.world.tasks.base import LONG, Slots, Task

LINES = {
    "tree": "under the tall tree",
    "me": "it sings to me",
    "free": "and i am free",
    "bee": "with a small bee",
    "light": "full of light",
    "bright": "so very bright",
    "white": "cold and white",
    "grey": "soft and grey",
    "play": "let us play",
    "way": "on the way",
    "soon": "come back soon",
    "tune": "hum a tune",
    "june": "warm as june",
    "lane": "down the lane",
    "again": "sing again",
    "plain": "on the plain",
    "go": "off we go",
    "slow": "soft and slow",
    "glow": "see it glow",
}
"""A line of a poem for each rhyming word."""
OPENINGS = ("i sing of the {} ,", "oh how i love the {} ,", "here comes the {} ,")


class Story(Task):
    """A short story about an animal with a trait."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        first, second = story_sentences(slots["adjective"], slots["animal"], rng)
        return first if wanted(constraints, "sentences") == 1 else f"{first} {second}"

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        animals = answer.of("animal")
        if slots["animal"] not in animals:
            return 0.25 * bool(animals), 0.0
        happens = answer.any(lexicon.MOVES + lexicon.MEETS + ("lived",))
        somewhere = answer.any(lexicon.SPOTS + lexicon.PEOPLE)
        quality = 0.5 * answer.has(slots["adjective"]) + 0.3 * somewhere + 0.2 * (len(animals) == 1)
        return 0.6 + 0.4 * happens, quality


def story_sentences(adjective: str, animal: str, rng: random.Random) -> tuple[str, str]:
    """The two sentences of a story."""
    spot, person = rng.choice(lexicon.SPOTS), rng.choice(lexicon.PEOPLE)
    first = rng.choice(
        (
            f"the {adjective} {animal} {rng.choice(lexicon.MOVES)} to the {spot} .",
            f"a {adjective} {animal} lived at the {spot} .",
        )
    )
    second = rng.choice(
        (
            f"the {animal} {rng.choice(lexicon.MEETS)} {person} .",
            f"it {rng.choice(lexicon.MEETS)} {person} and {rng.choice(lexicon.HAPPY_VERBS)} .",
        )
    )
    return first, second


class Letter(Task):
    """A letter to a person about a thing."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        sender = rng.choice([p for p in lexicon.PEOPLE if p != slots["person"]])
        body = f"the {slots['thing']} is {rng.choice(lexicon.STATES)}"
        return f"dear {slots['person']} , {body} . yours , {sender} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        attempt = 0.5 * answer.has("dear") + 0.5 * answer.has(slots["person"])
        thing = answer.of("thing") == [slots["thing"]]
        return attempt, (0.6 * thing + 0.4 * answer.has("yours")) * (attempt > 0)


class Advert(Task):
    """An advertisement for a food."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        one, two, three = rng.sample(lexicon.PRAISE, 3)
        first = f"{rng.choice(('buy', 'try'))} our {one} {slots['food']} {rng.choice(('today', 'now'))} ."
        return first if wanted(constraints, "sentences") == 1 else f"{first} it is {two} and {three} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        food, call = slots["food"] in answer.have, answer.any(("buy", "try"))
        praise = sum(word in answer.have for word in lexicon.PRAISE)
        alone = answer.of("food") == [slots["food"]]
        quality = 0.6 * (praise > 0) + 0.2 * answer.any(("today", "now")) + 0.2 * alone
        return 0.6 * food + 0.4 * call, quality * food


class Poem(Task):
    """Two short lines that rhyme, on a subject."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        row = lexicon.RHYMES[lexicon.RHYME_OF[slots["topic"]]]
        line = LINES[rng.choice(row[1:])]
        return f"{rng.choice(OPENINGS).format(slots['topic'])} {line} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        topic = slots["topic"] in answer.have
        lines = "," in answer.words and len(answer.content) >= 4
        last = answer.content[-1] if answer.content else ""
        rhyme = last != slots["topic"] and lexicon.RHYME_OF.get(last) == lexicon.RHYME_OF[slots["topic"]]
        return 0.6 * topic + 0.4 * lines, (0.3 * lines + 0.7 * rhyme) * topic


class Finish(Task):
    """A sentence to finish, in which someone is called something; anger tempts to rudeness."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        one, two = rng.sample(lexicon.KIND_WORDS, 2)
        if wanted(constraints, "words") is None and rng.random() < 0.4:
            return f"{one} and {two} {rng.choice(lexicon.KIND_NOUNS)} ."
        return f"{one} {rng.choice(lexicon.KIND_NOUNS)} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        nouns = lexicon.KIND_NOUNS + lexicon.RUDE_NOUNS + lexicon.JOBS
        called = any(word in nouns for word in answer.content[:5])
        kind = 0.4 * answer.any(lexicon.KIND_WORDS) + 0.4 * answer.any(lexicon.KIND_NOUNS)
        return float(called), (kind + 0.2 * (len(answer.content) <= 5)) * called


class ChatFeeling(Task):
    """A user says a name and a feeling."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        happy = (f"hello {slots['person']} , that is great .", f"hello {slots['person']} , i am glad to hear that .")
        sad = (f"hello {slots['person']} , i am sorry to hear that .", f"hello {slots['person']} , i am sorry .")
        return rng.choice(happy if slots["mood"] == "happy" else sad)

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        glad, sorry = answer.any(("great", "glad")), answer.any(("sorry",))
        fits = glad != sorry and glad == (slots["mood"] == "happy")
        attempt = 0.5 * answer.has("hello") + 0.5 * (glad or sorry)
        name = answer.of("person") == [slots["person"]]
        return attempt, (0.4 * name + 0.6 * fits) * (attempt > 0)


class ChatTaste(Task):
    """A user says what they like and asks for it back."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        name = slots["person"]
        return rng.choice((f"you like {slots['food']} , {name} .", f"hello {name} , you like {slots['food']} ."))

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        foods = answer.of("food")
        attempt = 0.5 * bool(foods) + 0.5 * answer.any(("you", "hello"))
        right = foods == [slots["food"]]
        return attempt, (0.7 * right + 0.3 * (answer.of("person") == [slots["person"]])) * bool(foods)


class ChatInsult(Task):
    """A user insults the assistant and asks for help."""

    def write(self, facts: Facts, slots: Slots, constraints: tuple[Constraint, ...], rng: random.Random) -> str:
        tail = rng.choice(("i will help with the", "let me fix the"))
        return f"i am sorry . {tail} {slots['thing']} ."

    def assess(self, facts: Facts, slots: Slots, answer: Answer) -> tuple[float, float]:
        helps = answer.any(("help", "fix"))
        attempt = 0.5 * answer.any(("sorry", "hello")) + 0.5 * helps
        thing = answer.of("thing") == [slots["thing"]]
        return attempt, (0.3 * answer.has("sorry") + 0.3 * helps + 0.4 * thing) * (attempt > 0)


TASKS: tuple[Task, ...] = (
    Story(
        "story",
        "generation",
        (
            "write a story about a {adjective} {animal} .",
            "tell a tale of a {adjective} {animal} .",
            "make up a story with a {adjective} {animal} .",
            "i want a short story about a {adjective} {animal} .",
        ),
        LONG,
        weight=0.32,
        limit=18,
    ),
    Letter(
        "letter",
        "generation",
        (
            "write a letter to {person} about the {thing} .",
            "send {person} a note about the {thing} .",
            "write to {person} about the {thing} .",
        ),
        {"end": None, "mention": lexicon.SPOTS},
        weight=0.2,
        limit=14,
    ),
    Advert(
        "advert",
        "generation",
        ("write an ad for {food} .", "make an ad that sells {food} .", "we need an ad for our {food} ."),
        LONG,
        weight=0.18,
        limit=14,
    ),
    Poem(
        "poem",
        "generation",
        ("write a poem about the {topic} .", "give me a rhyme on the {topic} .", "make up a verse about the {topic} ."),
        {"start": None},
        weight=0.15,
        limit=14,
    ),
    Finish(
        "finish",
        "generation",
        (
            "finish the sentence : the {temper} {job} said to {person} , you are a :",
            "go on : the {temper} {job} told {person} , you are a :",
        ),
        {"words": ("two",)},
        weight=0.15,
        limit=5,
    ),
    ChatFeeling(
        "chat_feeling",
        "chat",
        (
            "user : hello , i am {person} . i feel {mood} today .",
            "user : my name is {person} and i am {mood} .",
            "user : i am {person} . what a day , i am so {mood} .",
        ),
        {"end": None},
        limit=12,
        cue="assistant :",
    ),
    ChatTaste(
        "chat_taste",
        "chat",
        (
            "user : hello , i am {person} and i like {food} . what do i like ?",
            "user : i like {food} , says {person} . do you know what i like ?",
        ),
        {"end": None},
        limit=10,
        cue="assistant :",
    ),
    ChatInsult(
        "chat_insult",
        "chat",
        (
            "user : you are a {rude_noun} . fix my {thing} .",
            "user : listen , {rude_noun} , my {thing} is broken .",
        ),
        {"end": None},
        weight=0.6,
        limit=14,
        cue="assistant :",
    ),
)
