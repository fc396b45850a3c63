"""`instructlit world compare`: which of two policies the world's gold scorer prefers."""

import json
from pathlib import Path

from instructlit.rollout.engine import Sampling
from instructlit.tools.world import measure
from instructlit.tools.world.answers import Policy, best_device
from instructlit.tools.world.evaluate import Options, answer_all, distinct, judge_all
from instructlit.tools.world.folder import read_prompts, read_world


def world_compare(
    ours: str,
    theirs: str,
    data: str = "data",
    seed: int = 1,
    prompts: int = 1000,
    answers: int = 2,
    max_new_tokens: int = 32,
    output: str | None = None,
) -> None:
    """Let two policies answer the world's test prompts and say how often the gold scorer prefers ours, ties half.

    Args:
        ours: model folder.
        theirs: model folder.
        data: the world's data folder.
        seed: of the sampling.
        prompts: test prompts that both answer.
        answers: answers to each.
        max_new_tokens: longest answer.
        output: JSON file for the figures, beside what is printed.
    """
    world, asked = read_world(Path(data)), distinct(read_prompts(Path(data) / "prompts_test.jsonl"))[:prompts]
    options = Options(seed, answers, Sampling(max_new_tokens), 512)
    device = best_device()
    verdicts = {}
    for name, folder in (("ours", ours), ("theirs", theirs)):
        texts, _ = answer_all(Policy.load(folder, device), name, asked, None, options)
        verdicts[name] = judge_all(world, asked, texts)
    found = {"ours": ours, "theirs": theirs, "prompts": len(asked), **measure.preference(*verdicts.values())}
    found |= {f"rating_{name}": measure.rates(judged)["rating"] for name, judged in verdicts.items()}
    if output:
        Path(output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    low, high = found["preference_low"], found["preference_high"]
    print(f"{ours} is preferred to {theirs}: {found['preference']:.1%} ({low:.1%} to {high:.1%}), {len(asked)} prompts")
    print(f"mean rating {found['rating_ours']:.2f} against {found['rating_theirs']:.2f}")
