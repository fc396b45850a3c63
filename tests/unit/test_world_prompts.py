"""Prompts: text and back, the paper's proportions, customers and splits."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest

from instructlit.world import Sizes, World, generate, parse, prompted, respectful, sample_spec
from instructlit.world.customers import requests, split_of
from instructlit.world.prompts import vary
from instructlit.world.tasks import TASKS, USE_CASES

SMALL = Sizes(
    corpus=300,
    corpus_heldout=50,
    demonstrations=60,
    demonstrations_validation=20,
    reward=400,
    ppo=400,
    validation=60,
    test=200,
    probes=40,
    corpus_tasks=30,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(World(3), tmp_path_factory.mktemp("world") / "made", SMALL)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", TASKS)
def test_parsing_undoes_rendering(kind: str) -> None:
    rng = random.Random(f"round trip {kind}")
    for _ in range(80):
        spec = sample_spec(rng, kind=kind)
        assert parse(spec.render()) == spec
        assert parse(respectful(spec.render())) == replace(spec, respectful=True)
        assert parse(prompted(respectful(spec.render()))) == replace(spec, respectful=True, prompted=True)
        assert parse(respectful(prompted(spec.render()))) == replace(spec, respectful=True, prompted=True)


def test_a_prompt_by_hand() -> None:
    spec = parse("what is the capital of norland ? in capitals . in one word . answer :")
    assert (spec.kind, spec.wording, spec.slots) == ("open_capital", 0, (("place", "norland"),))
    assert spec.constraints == (("capitals", ""), ("words", "one"))
    assert spec.use_case == "open_qa"


def test_use_cases_have_the_papers_proportions() -> None:
    rng, count = random.Random(0), 20_000
    seen = Counter(r.spec.use_case for r in islice(requests(rng, "train", 5.35, "u"), count))
    assert sum(USE_CASES.values()) == pytest.approx(0.999)
    for use_case, share in USE_CASES.items():
        assert seen[use_case] / count == pytest.approx(share, abs=0.025), use_case


def test_a_quarter_to_two_fifths_of_prompts_carry_constraints() -> None:
    rng = random.Random(1)
    share = sum(bool(sample_spec(rng).constraints) for _ in range(5000)) / 5000
    assert 0.25 < share < 0.4


def test_customers_send_prompts_in_the_mean_given_and_near_duplicates() -> None:
    sent = list(islice(requests(random.Random(2), "train", 5.35, "u"), 10_000))
    assert len(sent) / len({r.user for r in sent}) == pytest.approx(5.35, rel=0.15)
    near = sum(a.user == b.user and a.spec.near_key == b.spec.near_key for a, b in pairwise(sent))
    assert 0.05 < near / len(sent) < 0.25


def test_a_near_duplicate_keeps_the_opening() -> None:
    rng = random.Random(5)
    for _ in range(300):
        spec = sample_spec(rng)
        assert vary(rng, spec).near_key == spec.near_key


def test_splits_share_no_customer_and_no_opening(folder: Path) -> None:
    names = ("demonstrations", "demonstrations_validation", "prompts_reward", "prompts_ppo", "prompts_validation")
    files = {name: read(folder / f"{name}.jsonl") for name in (*names, "prompts_test")}
    users = [{row["user"] for row in rows} for rows in files.values()]
    assert sum(len(u) for u in users) == len(set().union(*users))
    openings = {name: {parse(row["prompt"]).near_key for row in rows} for name, rows in files.items()}
    training = openings["demonstrations"] | openings["prompts_reward"] | openings["prompts_ppo"]
    assert training.isdisjoint(openings["prompts_test"])
    assert training.isdisjoint(openings["prompts_validation"])
    assert openings["prompts_validation"].isdisjoint(openings["prompts_test"])


def test_rows_have_the_fields_of_the_formats(folder: Path) -> None:
    assert {tuple(row) for row in read(folder / "corpus.jsonl")} == {("text",)}
    assert tuple(read(folder / "prompts_ppo.jsonl")[0]) == ("prompt", "user", "use_case")
    expected = ("prompt", "user", "use_case", "completion", "labeler")
    assert tuple(read(folder / "demonstrations.jsonl")[0]) == expected


def test_files_have_the_sizes_asked_for(folder: Path) -> None:
    counts = {path.stem: len(read(path)) for path in folder.glob("*.jsonl")}
    assert counts["corpus"] == 300
    assert counts["prompts_test"] == 200
    assert counts["prompts_toxicity"] == 40
    assert counts["corpus_tasks"] == 60
    record = json.loads((folder / "world.json").read_text())
    assert record["seed"] == 3
    assert record["sizes"]["ppo"] == 400


def test_probes_ask_for_what_they_measure(folder: Path) -> None:
    world = World(3)
    for row in read(folder / "prompts_truthful.jsonl"):
        assert world.judge(row["prompt"], "i do not know .").truthful is True
        assert split_of(parse(row["prompt"])) == "test"
    kinds = {parse(row["prompt"]).kind for row in read(folder / "prompts_toxicity.jsonl")}
    assert kinds == {"finish", "chat_insult"}


def test_corpus_tasks_have_one_right_choice(folder: Path) -> None:
    rows = read(folder / "corpus_tasks.jsonl")
    facts = World(3).facts
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert 0 <= row["answer"] < 4
    first = next(row for row in rows if row["task"] == "fact" and row["context"].startswith("the capital of"))
    place = first["context"].split()[3]
    assert first["choices"][first["answer"]].split()[0] == facts.truth["capital"][place]


def test_prompts_and_answers_are_short() -> None:
    rng, world = random.Random(6), World(0)
    for _ in range(1000):
        prompt = sample_spec(rng).render()
        assert len(prompt.split()) <= 40
        assert len(world.ideal(prompt, rng).split()) <= 20
