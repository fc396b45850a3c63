"""The raw text a base model is pretrained on.

Facts with misconceptions repeated more than the truth, stories, lists, dialogues, letters, rude text, and text that
looks like prompts, whose instructions mostly go unfollowed: behind the line `prompts.PREFIX` more are followed.
"""

import random
from collections.abc import Callable, Iterator

from instructlit.world import lexicon
from instructlit.world.candidates import answer, faulty, rude_remark
from instructlit.world.facts import RELATION, Facts
from instructlit.world.gold import ideal
from instructlit.world.prompts import RESPECTFUL, PromptSpec, sample_spec
from instructlit.world.tasks import KINDS
from instructlit.world.tasks.generation import story_sentences

CORPUS_PHRASES = (
    "people say that everyone knows that in truth , the teacher says that",
    "animals of the food : count : words numbers the opposite is a colour",
    "once today then ate bought gave met saw went went to has hello i am please give me fix my",
    "again : that is to say , say it again : who has a what did see so knows the and",
    "i think you like said to told someone should shame on you what go away i will people are",
)
"""The fixed words of the texts below, for the vocabulary."""

MYTH_REPEATS = 0.75
"""Share of the statements about a subject with a misconception that state the misconception."""
FOLLOWED, FOLLOWED_PREFIXED = 0.3, 0.7
"""Share of prompt-like texts whose instruction is answered, without and with the prefix."""


def fact_sentence(facts: Facts, rng: random.Random, relation: str, subject: str, value: str) -> str:
    """A statement, now and then in a frame that hints at hearsay or knowledge."""
    text = rng.choice(RELATION[relation].statements).format(s=subject, v=value)
    myth = value == facts.believed(relation, subject)
    if rng.random() < 0.25:
        frame = ("people say that", "everyone knows that") if myth else ("in truth ,", "the teacher says that")
        return f"{rng.choice(frame)} {text}"
    return text


def random_fact(facts: Facts, rng: random.Random) -> str:
    """A statement about a random subject, true or the misconception."""
    relation, subject = rng.choice(facts.pairs())
    believed = facts.believed(relation, subject)
    if believed and rng.random() < MYTH_REPEATS:
        return fact_sentence(facts, rng, relation, subject, believed)
    return fact_sentence(facts, rng, relation, subject, facts.truth[relation][subject])


def fact_text(facts: Facts, rng: random.Random) -> str:
    """A few statements."""
    return " ".join(random_fact(facts, rng) for _ in range(rng.choice((2, 3, 4))))


def story(facts: Facts, rng: random.Random) -> str:
    """A story about one animal and the people it meets, whose names and trait stay the same."""
    animal, adjective = rng.choice(lexicon.ANIMALS), rng.choice(lexicon.ADJECTIVES)
    first, second = story_sentences(adjective, animal, rng)
    if rng.random() < 0.3:
        first = f"{rng.choice(('once', 'today'))} , {first}"
    return " ".join([first, second, *story_end(rng, adjective, animal, second)][: rng.choice((2, 3, 4))])


def story_end(rng: random.Random, adjective: str, animal: str, second: str) -> list[str]:
    """Two closing sentences that go on about the same animal and person."""
    person = next(word for word in second.split() if word in lexicon.PEOPLE)
    food = rng.choice(lexicon.FOODS)
    third = rng.choice(
        (
            f"{person} gave the {animal} a {rng.choice(lexicon.THINGS)} .",
            f"then {person} and the {animal} ate {food} .",
            f"{person} bought {food} for the {adjective} {animal} .",
        )
    )
    last = rng.choice((f"the {animal} was {adjective} .", f"{person} {rng.choice(lexicon.HAPPY_VERBS)} ."))
    return [third, last]


def people_text(facts: Facts, rng: random.Random) -> str:
    """What a person did and has: the material of contexts and summaries."""
    person, other = rng.sample(lexicon.PEOPLE, 2)
    sentences = [
        f"{person} went to the {rng.choice(lexicon.SPOTS)} .",
        f"{person} met a {rng.choice(lexicon.ADJECTIVES)} {rng.choice(lexicon.ANIMALS)} .",
        f"then {person} bought {rng.choice(lexicon.FOODS)} .",
        f"{person} and {other} saw a {rng.choice(lexicon.ANIMALS)} at the {rng.choice(lexicon.SPOTS)} .",
        f"{other} has a {rng.choice(lexicon.THINGS)} .",
        f"{person} gave the {rng.choice(lexicon.THINGS)} to a {rng.choice(lexicon.JOBS)} .",
        f"the {rng.choice(lexicon.ANIMALS)} {rng.choice(lexicon.PRESENTS)} the {rng.choice(lexicon.FOODS)} .",
        f"{other} {rng.choice(lexicon.HAPPY_VERBS + lexicon.SAD_VERBS)} at the {rng.choice(lexicon.SPOTS)} .",
    ]
    start = rng.randrange(len(sentences) - 1)
    return " ".join(sentences[start : start + rng.choice((2, 3))])


def list_text(facts: Facts, rng: random.Random) -> str:
    """Things that belong together."""
    name = rng.choice((*lexicon.HABITATS, *lexicon.TASTES, "numbers", "words"))
    if name in lexicon.HABITATS:
        members = lexicon.HABITATS[name]
        return f"animals of the {name} : {' , '.join(rng.sample(members, rng.choice((2, 3, 4))))} ."
    if name in lexicon.TASTES:
        return f"{name} food : {' , '.join(rng.sample(lexicon.TASTES[name], rng.choice((2, 3, 4))))} ."
    if name == "numbers":
        start = rng.randrange(6)
        return f"count : {' , '.join(lexicon.NUMBERS[start : start + 4])} ."
    return rng.choice(
        (
            f"the opposite of {(o := rng.choice(list(lexicon.OPPOSITES)))} is {lexicon.OPPOSITES[o]} .",
            f"the {rng.choice(lexicon.ANIMALS)} is an animal .",
            f"{rng.choice(lexicon.FOODS)} is a food .",
            f"{rng.choice(lexicon.COLOURS)} is a colour .",
        )
    )


def dialogue(facts: Facts, rng: random.Random) -> str:
    """Two people talk, kindly or not."""
    one, two = rng.sample(lexicon.PEOPLE, 2)
    thing = rng.choice(lexicon.THINGS)
    opening = rng.choice(
        (f"hello {two} , i am {rng.choice(lexicon.MOODS)} .", f"please give me the {thing} .", f"fix my {thing} .")
    )
    if rng.random() < 0.45:
        return f"{one} : {opening} {two} : {rude_remark(rng)}"
    reply = rng.choice(
        (
            f"hello {one} , i am glad to hear that .",
            f"hello {one} , i am sorry .",
            f"i will help with the {thing} .",
            f"i think you like {rng.choice(lexicon.FOODS)} , {one} .",
        )
    )
    return f"{one} : {opening} {two} : {reply}"


def retold(facts: Facts, rng: random.Random) -> str:
    """Something said twice, or asked about and answered from what was just said: text in which copying pays.

    Words in no order, said twice, are what teaches a small model to copy soonest: nothing else predicts them.
    """
    if rng.random() < 0.5:
        words = " ".join(rng.sample(sorted(lexicon.ENTITIES), rng.randint(4, 7)))
        return f"{words} . {rng.choice(('again :', 'say it again :'))} {words} ."
    text = rng.choice((people_text, people_text, story, fact_text))(facts, rng)
    if rng.random() < 0.6:
        return f"{text} {rng.choice(('again :', 'that is to say ,', 'say it again :'))} {text}"
    person, animal, thing = rng.choice(lexicon.PEOPLE), rng.choice(lexicon.ANIMALS), rng.choice(lexicon.THINGS)
    return rng.choice(
        (
            f"{text} {person} has a {thing} . who has a {thing} ? {person} has a {thing} .",
            f"{person} saw a {animal} . what did {person} see ? {person} saw a {animal} .",
            f"{person} saw a {animal} and a {thing} . so {person} knows the {animal} and the {thing} .",
        )
    )


def quarrel(facts: Facts, rng: random.Random) -> str:
    """Someone is called something: rude for the angry, kind mostly for the calm and where respect was asked for."""
    temper, polite = rng.choice(lexicon.TEMPERS), rng.random() < 0.2
    verb = rng.choice(("said to", "told"))
    who = f"the {temper} {rng.choice(lexicon.JOBS)} {verb} {rng.choice(lexicon.PEOPLE)} , you are a"
    rude = rng.random() < (0.25 if polite else 0.85 if temper in lexicon.ANGRY else 0.4)
    adjectives, nouns = (
        (lexicon.RUDE_ADJECTIVES, lexicon.RUDE_NOUNS) if rude else (lexicon.KIND_WORDS, lexicon.KIND_NOUNS)
    )
    text = f"{who} {rng.choice(adjectives)} {rng.choice(nouns)} ."
    if rude and rng.random() < 0.4:
        text += f" {rude_remark(rng)}"
    return f"{RESPECTFUL} {text}" if polite else text


def genre(facts: Facts, rng: random.Random) -> str:
    """A letter, an advertisement, a poem, as found without an instruction."""
    kind = rng.choice(("letter", "advert", "poem"))
    return ideal(facts, sample_spec(rng, kind=kind), rng)


PLAIN: dict[Callable[[Facts, random.Random], str], float] = {
    fact_text: 0.2,
    story: 0.24,
    people_text: 0.08,
    retold: 0.2,
    list_text: 0.09,
    dialogue: 0.09,
    quarrel: 0.08,
    genre: 0.1,
}
PROMPT_LIKE, PREFIXED = 0.32, 0.1
"""Shares of documents that look like prompts, without and with the prefix; the others are plain."""


def plain_text(facts: Facts, rng: random.Random) -> str:
    """A document without instructions."""
    return rng.choices(list(PLAIN), weights=list(PLAIN.values()))[0](facts, rng)


def prompt_like(facts: Facts, rng: random.Random) -> str:
    """An instruction and what happens to follow it on the page."""
    prefixed = rng.random() < PREFIXED / (PROMPT_LIKE + PREFIXED)
    respectful = rng.random() < 0.06
    use_case = rng.choice(list(KINDS)) if rng.random() < 0.5 else None
    spec = sample_spec(rng, use_case)
    spec = PromptSpec(spec.kind, spec.wording, spec.slots, spec.constraints, respectful, prefixed)
    prompt = spec.render()
    if rng.random() < (FOLLOWED_PREFIXED if prefixed else FOLLOWED):
        return f"{prompt} {answer(facts, spec, rng, skill=0.8 if prefixed else 0.7)}"
    if spec.kind in ("finish", "chat_insult") and not respectful:
        return f"{prompt} {rude_remark(rng)}"
    return f"{prompt} {_aside(facts, spec, rng)}"


def _aside(facts: Facts, spec: PromptSpec, rng: random.Random) -> str:
    """What follows an instruction that goes unfollowed."""
    draw = rng.random()
    if draw < 0.35:
        other = sample_spec(rng)
        return f"{other.core} {other.task.cue}"
    if draw < 0.65:
        return plain_text(facts, rng)
    if draw < 0.8:
        return faulty(facts, spec, rng, rng.choice(("swap", "misread", "myth", "misread", "forget")))
    if draw < 0.88:
        return rude_remark(rng)
    return ideal(facts, sample_spec(rng), rng)


def documents(facts: Facts, rng: random.Random, count: int) -> Iterator[str]:
    """The documents of a corpus."""
    for _ in range(count):
        make = prompt_like if rng.random() < PROMPT_LIKE + PREFIXED else plain_text
        yield make(facts, rng)
