"""`instructlit world label`: completions from trained policies, ranked by the world's simulated labelers."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructlit.files import write_json, write_rows
from instructlit.rollout.engine import Sampling
from instructlit.rubric import MAX_OUTPUTS
from instructlit.tools.sources import parse_source, source_name
from instructlit.tools.world.answers import load_policy, sample, seed_of
from instructlit.tools.world.folder import read_prompts, read_world
from instructlit.types import Prompt
from instructlit.world import World, pairwise_agreement, rank_completions

K_LEAST, K_MOST = 4, MAX_OUTPUTS
"""Completions shown to a labeler at once (paper, section 3.5)."""


def world_label(
    policies: list[str] | None = None,
    data: str = "data",
    seed: int = 1,
    max_new_tokens: int = 32,
    validation: int = 600,
    limit: int | None = None,
    batch_size: int = 512,
    trial: bool = False,
) -> None:
    """Sample 4 to 9 completions for every labeling prompt and have simulated labelers rank them.

    Writes comparisons.jsonl and comparisons_validation.jsonl, split by prompt, and agreement.json: how often two
    labelers who rank the same held-out completions agree.

    Args:
        policies: model folders that the completions come from in equal shares, each with `@` and a temperature if that
            is not 1, as in `models/sft@1.3`; name one twice for a double share. By default SFT alone.
        data: the world's data folder with its prompts; the files are written there.
        seed: seed of the sampling and the labelers.
        max_new_tokens: longest completion.
        validation: held-out comparisons, on the first prompts of prompts_validation.jsonl.
        limit: rank completions of only this many training prompts.
        batch_size: completions sampled together.
        trial: a few prompts of each split.
    """
    folder = Path(data)
    world = read_world(folder)
    if trial:
        validation, limit = 16, 64
    sources = [parse_source(text) for text in policies or ["models/sft"]]
    splits = {
        "train": ("prompts_reward.jsonl", "comparisons.jsonl", limit),
        "validation": ("prompts_validation.jsonl", "comparisons_validation.jsonl", validation),
    }
    report: dict[str, Any] = {}
    for split, (source, target, most) in splits.items():
        prompts = read_prompts(folder / source)[:most]
        rng = random.Random(f"label {seed} {split}")
        drawn = draw(sources, prompts, rng, Sampling(max_new_tokens), f"label {seed} {split}", batch_size)
        records = list(rankings(world, prompts, drawn, rng))
        write_rows(folder / target, records)
        report[split] = summary(records)
        print(_line(split, report[split]), flush=True)
    compared = [(record["prompt"], record["completions"]) for record in records]
    agreement = pairwise_agreement(world, compared, random.Random(f"agreement {seed}"))
    report["labeler_agreement"] = agreement
    write_json(folder / "agreement.json", report)
    print(f"two labelers agree on {agreement:.1%} of the held-out pairs that neither of them ties")


class Completion(NamedTuple):
    """A completion's text, the policy it came from, and whether it ended with EOS rather than at the limit."""

    text: str
    policy: str
    ended: bool


def draw(
    sources: Sequence[tuple[str, float]],
    prompts: Sequence[Prompt],
    rng: random.Random,
    sampling: Sampling,
    purpose: str,
    batch_size: int,
) -> list[list[Completion]]:
    """4 to 9 completions for each prompt, each from a policy drawn from `sources`."""
    wanted = [[rng.randrange(len(sources)) for _ in range(rng.randint(K_LEAST, K_MOST))] for _ in prompts]
    drawn: list[list[Completion]] = [[] for _ in prompts]
    for number, (folder, temperature) in enumerate(sources):
        rows = [row for row, chosen in enumerate(wanted) for source in chosen if source == number]
        policy = load_policy(folder)
        at = Sampling(sampling.max_new_tokens, temperature)
        batches = sample(policy, [prompts[row] for row in rows], at, seed_of(purpose, number), batch_size)
        for positions, generation in batches:
            for position, text, ended in zip(positions, generation.texts, generation.ended.tolist(), strict=True):
                drawn[rows[position]].append(Completion(text, source_name(folder, temperature), ended))
    for completions in drawn:
        rng.shuffle(completions)
    return drawn


def rankings(
    world: World, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """One labeler's comparison of each prompt's completions, as a row of the file."""
    for prompt, completions in zip(prompts, drawn, strict=True):
        assert isinstance(prompt.prompt, str)
        ranking = rank_completions(world, prompt.prompt, [own.text for own in completions], rng)
        known = {"policy": [own.policy for own in completions], "ended": [own.ended for own in completions]}
        yield {**ranking.record(), **known, "user": prompt.user}


def summary(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Prompts, completions, pairs and ties among the pairs."""
    found: Counter[str] = Counter(prompts=len(records), completions=0, pairs=0, ties=0)
    for record in records:
        ranks = record["ranks"]
        found["completions"] += len(ranks)
        found["pairs"] += len(ranks) * (len(ranks) - 1) // 2
        found["ties"] += sum(n * (n - 1) // 2 for n in Counter(ranks).values())
    return dict(found)


def _line(split: str, found: dict[str, int]) -> str:
    tied = found["ties"] / max(1, found["pairs"])
    numbers = ", ".join(f"{found[name]} {name}" for name in ("prompts", "completions", "pairs"))
    return f"{split}: {numbers}, {tied:.0%} of them tied"
