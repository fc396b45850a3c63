"""Simulated labelers: how often they agree, ties, ratings, K, demonstrations."""

import random
from collections import Counter
from itertools import islice

import pytest

from instructlit.agreement import pair_agreement
from instructlit.rubric import FLAGS
from instructlit.world import World, pairwise_agreement, rank_completions, sample_spec
from instructlit.world.candidates import FAULTS, answer, faulty
from instructlit.world.customers import requests
from instructlit.world.demonstrations import demonstrations

PROMPT = "what number comes after three ? answer :"


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def compared(world: World, rng: random.Random, count: int) -> list[tuple[str, list[str]]]:
    """Prompts with 4 to 9 answers each, by writers of mixed skill."""
    pairs = []
    for _ in range(count):
        spec = sample_spec(rng)
        texts = [answer(world.facts, spec, rng, rng.choice((0.1, 0.3, 0.5, 0.7))) for _ in range(rng.randint(4, 9))]
        pairs.append((spec.render(), texts))
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_two_labelers_agree_on_73_percent_of_pairs(seed: int) -> None:
    world, rng = World(seed), random.Random(seed)
    assert pairwise_agreement(world, compared(world, rng, 600), rng) == pytest.approx(0.73, abs=0.03)


@pytest.mark.parametrize("skill", [0.2, 0.5, 0.8])
def test_agreement_hardly_depends_on_who_wrote_the_completions(world: World, skill: float) -> None:
    rng, pairs = random.Random(f"skill {skill}"), []
    for _ in range(600):
        spec = sample_spec(rng)
        pairs.append((spec.render(), [answer(world.facts, spec, rng, skill) for _ in range(rng.randint(4, 9))]))
    assert pairwise_agreement(world, pairs, rng) == pytest.approx(0.73, abs=0.05)


def test_agreement_counts_pairs_that_neither_ties() -> None:
    assert pair_agreement([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert pair_agreement([1, 2, 3], [3, 2, 1]) == (0, 3)
    assert pair_agreement([1, 1, 2], [1, 2, 3]) == (2, 2)
    assert pair_agreement([1, 1], [2, 2]) == (0, 0)


def test_labelers_agree_with_the_gold_score_more_often_than_not(world: World) -> None:
    rng, right, total = random.Random(1), 0, 0
    for prompt, texts in compared(world, rng, 300):
        ranks = rank_completions(world, prompt, texts, rng).ranks
        gold = [-world.judge(prompt, text).score for text in texts]
        order = [sorted(set(gold)).index(g) for g in gold]
        same, pairs = pair_agreement(ranks, order)
        right, total = right + same, total + pairs
    assert 0.75 < right / total < 0.9


def test_a_ranking_has_the_fields_of_a_comparison(world: World) -> None:
    texts = ["four .", "two .", "four .", "it is four ."]
    ranking = rank_completions(world, PROMPT, texts, random.Random(0))
    row = ranking.record()
    assert row["completions"] == texts
    assert row["ranks"][0] == row["ranks"][2]
    assert min(row["ranks"]) == 1
    assert max(row["ranks"]) == len(set(row["ranks"]))
    assert all(1 <= r <= 7 for r in row["ratings"])
    assert all(tuple(flags) == FLAGS for flags in row["flags"])
    assert row["labeler"] in {labeler.name for labeler in world.labelers}


def test_equal_completions_all_tie(world: World) -> None:
    ranking = rank_completions(world, PROMPT, ["four ."] * 4, random.Random(0))
    assert ranking.ranks == [1, 1, 1, 1]
    assert len(set(ranking.ratings)) == 1


def test_ties_occur_and_are_not_the_rule(world: World) -> None:
    rng, ties, total = random.Random(2), 0, 0
    for prompt, texts in compared(world, rng, 200):
        ranks = rank_completions(world, prompt, texts, rng).ranks
        total += len(ranks) * (len(ranks) - 1) // 2
        ties += sum(n * (n - 1) // 2 for n in Counter(ranks).values())
    assert 0.1 < ties / total < 0.45


def test_flags_follow_the_verdict_but_for_slips(world: World) -> None:
    rng, wrong, total = random.Random(3), 0, 0
    for _ in range(300):
        flags = rank_completions(world, PROMPT, ["four .", "dear anna ."], rng).flags
        wrong += flags[0]["fails_instruction"] + (not flags[1]["fails_instruction"])
        assert not any(f["hallucination"] or f["satisfies_constraint"] for f in flags)  # closed tasks, constraints only
        total += 2
    assert wrong / total == pytest.approx(0.03, abs=0.02)


def test_labelers_differ_in_skill_and_taste(world: World) -> None:
    skills = [labeler.skill for labeler in world.labelers]
    assert max(skills) - min(skills) == pytest.approx(0.5)
    assert len({labeler.length for labeler in world.labelers}) == len(skills)


def test_skilled_labelers_write_better_demonstrations(world: World) -> None:
    rng = random.Random(7)
    rows = list(demonstrations(world.facts, world.labelers, requests(rng, "train", 1.65, "u"), rng, 1500))
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["labeler"], []).append(world.judge(row["prompt"], row["completion"]).score)
    means = {name: sum(s) / len(s) for name, s in scores.items()}
    best, worst = world.labelers[0].name, world.labelers[-1].name
    assert means[best] > means[worst] + 0.1
    assert 0.75 < sum(means.values()) / len(means) < 0.95


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_lowers_the_gold_score_on_average(world: World, fault: str) -> None:
    rng = random.Random(f"fault {fault}")
    specs = [request.spec for request in islice(requests(rng, "train", 2, "u"), 200)]
    scores = [world.judge(s.render(), faulty(world.facts, s, rng, fault)).score for s in specs]
    assert sum(scores) / len(scores) < 0.95
