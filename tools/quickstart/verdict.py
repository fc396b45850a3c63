"""What the quickstart must show, as criteria on its results, for one seed and over several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Results = Mapping[str, Any]
"""The content of a results.json of `instructlit evaluate --suite world`."""

SHARE = 0.8
"""The claims must hold for at least this share of the seeds: four of five."""


@dataclass(frozen=True)
class Criterion:
    """One claim, whether it holds, and the numbers behind it."""

    name: str
    claim: str
    holds: bool
    numbers: str


def criteria(results: Results) -> list[Criterion]:
    """The four claims for one seed.

    Raises:
        KeyError: something that they depend on was not measured.
    """
    measures = {measure["name"]: measure["figures"] for measure in results["measures"]}
    preference, perplexity = measures["preference/gold/win_rate"], measures["perplexity/corpus/token"]
    order = [preference[name]["value"] for name in ("base", "prompted", "sft", "ppo_ptx")]
    low, high = preference["ppo_ptx"]["low"], preference["ppo_ptx"]["high"]
    sft, ppo, mixed = (perplexity[name]["value"] for name in ("sft", "ppo", "ppo_ptx"))
    accuracy = measures["reward_model/accuracy"]["reward"]["value"]
    agreement = measures["world/labeler_agreement"]["labelers"]["value"]
    return [
        Criterion(
            "order",
            "preference rises: base, base with a prefix, SFT, PPO-ptx",
            all(a < b for a, b in pairwise(order)),
            " < ".join(f"{value:.3f}" for value in order),
        ),
        Criterion(
            "interval",
            "PPO-ptx is preferred to SFT beyond chance",
            low > 0.5,
            f"95 % interval {low:.3f} to {high:.3f} against 0.5",
        ),
        Criterion(
            "tax",
            "PPO raises corpus perplexity and PPO-ptx at least halves the rise",
            ppo > sft and mixed - sft <= 0.5 * (ppo - sft),
            f"SFT {sft:.2f}, PPO {ppo - sft:+.2f}, PPO-ptx {mixed - sft:+.2f}",
        ),
        Criterion(
            "reward",
            "the reward model's accuracy lies between 60 % and the labelers' own agreement",
            0.60 <= accuracy <= agreement,
            f"0.60 <= {accuracy:.3f} <= {agreement:.3f}",
        ),
    ]


def holds(results: Results) -> bool:
    """True where all criteria hold together."""
    return all(criterion.holds for criterion in criteria(results))


def needed(seeds: int) -> int:
    """For how many of `seeds` the claims must hold."""
    return math.ceil(SHARE * seeds)


def verdict(runs: Sequence[Results]) -> dict[str, Any]:
    """The criteria of every seed and the count that decides, ready for verdict.json."""
    rows = [
        {
            "seed": results["seed"],
            "holds": holds(results),
            "criteria": {c.name: {"holds": c.holds, "numbers": c.numbers} for c in criteria(results)},
        }
        for results in runs
    ]
    count = sum(row["holds"] for row in rows)
    return {"holds": count >= needed(len(rows)), "seeds_that_hold": count, "seeds": len(rows), "runs": rows}
