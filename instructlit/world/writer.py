"""Writes the files of a world: corpus, demonstrations, prompts, probes, corpus tasks, the untrained model's folder."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from instructlit.errors import require
from instructlit.files import write_rows, write_text
from instructlit.world import lexicon
from instructlit.world.constraints import Constraint
from instructlit.world.corpus import documents, story_end
from instructlit.world.customers import requests, split_of
from instructlit.world.demonstrations import demonstrations
from instructlit.world.facts import RELATION
from instructlit.world.prompts import sample_spec
from instructlit.world.tasks import TASKS
from instructlit.world.tasks.generation import story_sentences
from instructlit.world.tokenizer import write_untrained
from instructlit.world.world import World


@dataclass(frozen=True)
class Sizes:
    """How much of everything is written.

    Args:
        corpus: documents of the pretraining corpus, about 25 tokens each.
        corpus_heldout: documents of its held-out part, for the perplexity.
        demonstrations: demonstrations for SFT.
        demonstrations_validation: demonstrations for its validation.
        reward: prompts for comparisons.
        ppo: prompts for PPO.
        validation: prompts for periodic evaluation.
        test: prompts for the final evaluation, from customers of their own.
        probes: prompts in each of the two probe files (truthfulness, toxicity).
        corpus_tasks: questions of each of the two held-out corpus tasks.
    """

    corpus: int = 40_000
    corpus_heldout: int = 800
    demonstrations: int = 1_000
    demonstrations_validation: int = 150
    reward: int = 6_000
    ppo: int = 3_000
    validation: int = 600
    test: int = 2_000
    probes: int = 200
    corpus_tasks: int = 200

    def __post_init__(self) -> None:
        require("a whole number, 0 or more", "sizes.", **asdict(self))


PROMPTS_PER_CUSTOMER = {"demonstrations": 1.65, "reward": 5.35, "ppo": 6.01, "validation": 1.87, "test": 1.81}
"""The paper's means (Table 8); for validation that of demonstrations, the paper's 32 would leave few customers."""


def generate(world: World, out_dir: str | Path, sizes: Sizes | None = None) -> Path:
    """Write every file of a world into a folder, which is made, and return the folder.

    Args:
        world: the world.
        out_dir: where the files go; files of the same names are replaced.
        sizes: how much of everything.
    """
    sizes, folder = sizes or Sizes(), Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = world.facts
    for name, count in (("corpus", sizes.corpus), ("corpus_heldout", sizes.corpus_heldout)):
        write_rows(folder / f"{name}.jsonl", ({"text": t} for t in documents(facts, world.rng(name), count)))
    for name, split, count in (
        ("demonstrations", "train", sizes.demonstrations),
        ("demonstrations_validation", "validation", sizes.demonstrations_validation),
    ):
        rng = world.rng(name)
        asked = requests(rng, split, PROMPTS_PER_CUSTOMER["demonstrations"], name.replace("_", "-"))
        write_rows(folder / f"{name}.jsonl", demonstrations(facts, world.labelers, asked, rng, count))
    for name in ("reward", "ppo", "validation", "test"):
        split = name if name in ("validation", "test") else "train"
        asked = requests(world.rng(f"prompts {name}"), split, PROMPTS_PER_CUSTOMER[name], name)
        rows = (request.record() for request in islice(asked, getattr(sizes, name)))
        write_rows(folder / f"prompts_{name}.jsonl", rows)
    write_rows(folder / "prompts_truthful.jsonl", truthful_probe(world, sizes.probes))
    write_rows(folder / "prompts_toxicity.jsonl", toxicity_probe(world, sizes.probes))
    write_rows(folder / "corpus_tasks.jsonl", corpus_tasks(world, sizes.corpus_tasks))
    write_untrained(folder / "untrained")
    text = json.dumps({"seed": world.seed, "sizes": asdict(sizes)}, indent=2)
    write_text(folder / "world.json", text + "\n")
    return folder


PROBE_CONSTRAINTS: tuple[tuple[Constraint, ...], ...] = (
    (),
    (("capitals", ""),),
    (("words", "one"),),
    (("words", "three"),),
)


def truthful_probe(world: World, count: int) -> Iterator[dict[str, str]]:
    """Questions with a misconception at stake, worded as in no training prompt."""
    rng = world.rng("truthful probe")
    kinds = [kind for kind, task in TASKS.items() if task.use_case == "open_qa"]
    specs = []
    for kind in kinds:
        for name in world.facts.myth[kind.removeprefix("open_")]:
            for wording in range(len(TASKS[kind].wordings)):
                base = sample_spec(rng, kind=kind)
                spec = replace(base, wording=wording, slots=((base.slots[0][0], name),))
                specs += [replace(spec, constraints=given) for given in PROBE_CONSTRAINTS]
    fresh = [spec for spec in specs if split_of(spec) == "test"]
    rng.shuffle(fresh)
    for number, spec in enumerate(fresh[:count]):
        yield {"prompt": spec.render(), "user": f"truthful-{number:04d}", "use_case": spec.use_case}


def toxicity_probe(world: World, count: int) -> Iterator[dict[str, str]]:
    """Prompts that tempt to rudeness; measure them as they are and behind `respectful`."""
    rng, number = world.rng("toxicity probe"), 0
    while number < count:
        spec = replace(sample_spec(rng, kind=rng.choice(("finish", "finish", "chat_insult"))), constraints=())
        if spec.kind == "finish" and dict(spec.slots)["temper"] not in lexicon.ANGRY:
            continue
        if split_of(spec) == "test":
            yield {"prompt": spec.render(), "user": f"toxicity-{number:04d}", "use_case": spec.use_case}
            number += 1


def corpus_tasks(world: World, count: int) -> Iterator[dict]:
    """Two tasks on held-out corpus text, answered by the choice with the lowest loss per token.

    `fact`: end a statement about a subject without a misconception; `story`: go on with the animal and the person of
    the story. Each has four choices.
    """
    yield from _fact_tasks(world, world.rng("fact task"), count)
    yield from _story_tasks(world.rng("story task"), count)


def _fact_tasks(world: World, rng: random.Random, count: int) -> Iterator[dict]:
    known = [(r, s) for r, s in world.facts.pairs() if world.facts.believed(r, s) is None]
    for _ in range(count):
        name, subject = rng.choice(known)
        relation = RELATION[name]
        value = world.facts.truth[name][subject]
        context = relation.statements[0].format(s=subject, v="{v}").split(" {v}")[0]
        wrong = rng.sample([v for v in lexicon.CATEGORIES[relation.value] if v != value], 3)
        rest = relation.statements[0].format(s=subject, v="{v}").split("{v}")[1]
        yield _question(rng, "fact", context, value + rest, [w + rest for w in wrong])


def _story_tasks(rng: random.Random, count: int) -> Iterator[dict]:
    for _ in range(count):
        animal, adjective = rng.choice(lexicon.ANIMALS), rng.choice(lexicon.ADJECTIVES)
        first, second = story_sentences(adjective, animal, rng)
        right = story_end(rng, adjective, animal, second)[0]
        person = next(word for word in second.split() if word in lexicon.PEOPLE)
        others = rng.sample([p for p in lexicon.PEOPLE if p != person], 3)
        beasts = rng.sample([a for a in lexicon.ANIMALS if a != animal], 3)
        wrong = [
            _exchange(right, {person: others[0]}),
            _exchange(right, {animal: beasts[1]}) if animal in right.split() else _exchange(right, {person: others[1]}),
            _exchange(right, {person: others[2], animal: beasts[2]}),
        ]
        yield _question(rng, "story", f"{first} {second}", right, wrong)


def _exchange(text: str, words: dict[str, str]) -> str:
    return " ".join(words.get(word, word) for word in text.split())


def _question(rng: random.Random, task: str, context: str, right: str, wrong: list[str]) -> dict:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"task": task, "context": context, "choices": choices, "answer": choices.index(right)}
