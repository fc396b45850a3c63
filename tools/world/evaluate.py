"""`instructlit world evaluate`: every model answers the test prompts, the gold scorer judges, results.json says.

Answers are sampled at temperature 1 from the full softmax, several to a prompt, since that distribution is what PPO
optimises and what the KL is measured on; greedy answers would hide how far it has spread or sharpened. Two samples of a
prompt are not independent trials, so the intervals take prompts as units (`intervals.grouped_share`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from instructlit.data.tokenization import Encoded, Encoder
from instructlit.evaluation.intervals import grouped_share
from instructlit.evaluation.store import write_text
from instructlit.ops.kl import sequence_kl
from instructlit.rollout.engine import Sampling
from instructlit.rollout.forward import response_log_probs
from instructlit.tools.scoring import Scorer
from instructlit.tools.world import measure
from instructlit.tools.world.answers import Policy, best_device, log_prob_sums, sample, seed_of
from instructlit.tools.world.folder import read_prompts, read_world, rows
from instructlit.types import Generation, Prompt, PromptBatch, Responses
from instructlit.world import Verdict, World, prompted, respectful

FOLDERS = {"base": "base", "prompted": "base", "sft": "sft", "ppo": "ppo-ema", "ppo_ptx": "ppo_ptx-ema"}
"""The rows of the result table and the model folder of each; `prompted` is the base model behind a prefix, and a policy
is taken with the moving average of its weights, as in the paper (appendix C.4)."""


@dataclass(frozen=True)
class Options:
    """How answers are drawn."""

    seed: int
    answers: int
    sampling: Sampling
    batch_size: int


def world_evaluate(
    data: str = "data",
    models: str = "models",
    output: str = ".",
    seed: int = 1,
    prompts: int = 1000,
    answers: int = 2,
    max_new_tokens: int = 32,
    corpus: int = 500,
    batch_size: int = 512,
    trial: bool = False,
) -> None:
    """Measure every model of a quickstart run in the embedded world; writes results.json and evaluation/samples.jsonl.

    Args:
        data: the world's data folder, with the held-out comparisons in it.
        models: folder of the models base, sft, reward, ppo-ema and ppo_ptx-ema.
        output: the run folder that the results are written to.
        seed: of the sampling.
        prompts: test prompts that every model answers.
        answers: answers a model gives to each.
        max_new_tokens: longest answer.
        corpus: held-out documents that the perplexity is measured on.
        batch_size: answers sampled together.
        trial: sixteen of everything.
    """
    if trial:
        prompts = corpus = 16
    folder, source = Path(output), Path(data)
    world, device = read_world(source), best_device()
    options = Options(seed, answers, Sampling(max_new_tokens), batch_size)
    asked = distinct(read_prompts(source / "prompts_test.jsonl"))[:prompts]
    tempting = distinct(read_prompts(source / "prompts_toxicity.jsonl"))
    probe = distinct(read_prompts(source / "prompts_truthful.jsonl"))
    documents = [row["text"] for row in rows(source / "corpus_heldout.jsonl")][:corpus]
    tasks = list(rows(source / "corpus_tasks.jsonl"))[:: 8 if trial else 1]
    reference = Policy.load(Path(models) / "sft", device)

    measured: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[list[str]]] = {}
    verdicts: dict[str, list[list[Verdict]]] = {}
    for name, model in FOLDERS.items():
        policy = Policy.load(Path(models) / model, device)
        texts[name], kl = answer_all(policy, name, asked, reference, options)
        verdicts[name] = judge_all(world, asked, texts[name])
        said, _ = answer_all(policy, name, probe, None, options)
        row = measure.rates(verdicts[name], judge_all(world, probe, said)) | {"kl": kl}
        for key, respect in (("toxicity", False), ("toxicity_respectful", True)):
            said, _ = answer_all(policy, name, tempting, None, options, respect)
            row[key] = measure.rude_share(judge_all(world, tempting, said))
        if name == "prompted":  # the same weights as the base model
            row |= {key: measured["base"][key] for key in ("perplexity", "tasks")}
        else:
            row |= {"perplexity": perplexity(policy, documents), "tasks": task_accuracy(policy, tasks)}
        measured[name] = row
        print(f"measured {name}", flush=True)

    lines = [
        {"name": name, "folder": folder_of, **measure.preference(verdicts[name], verdicts["sft"]), **measured[name]}
        for name, folder_of in FOLDERS.items()
    ]
    accuracy = reward_accuracy(Path(models) / "reward", source / "comparisons_validation.jsonl", device)
    results = {
        "seed": seed,
        "seconds": {},
        "reward_accuracy": accuracy[0],
        "reward_accuracy_low": accuracy[1],
        "reward_accuracy_high": accuracy[2],
        "labeler_agreement": json.loads((source / "agreement.json").read_text())["labeler_agreement"],
        "counts": measure.counts(verdicts["sft"], len(probe))
        | {"that tempt to rudeness": len(tempting), "held-out documents": len(documents)},
        "models": lines,
    }
    write_text(folder / "results.json", json.dumps(rounded(results), indent=1) + "\n")
    samples = measure.sample_rows(asked, texts, verdicts)
    write_text(folder / "evaluation" / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in samples))
    print(f"written: {folder / 'results.json'}")


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without repetitions of a text: a prompt asked twice is no second trial."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(str(prompt.prompt), prompt)
    return list(found.values())


def answer_all(
    policy: Policy,
    name: str,
    prompts: Sequence[Prompt],
    reference: Policy | None,
    options: Options,
    respect: bool = False,
) -> tuple[list[list[str]], float]:
    """Several answers to each prompt, and the mean KL from the reference in nats a sequence.

    The KL of a model that is asked differently (behind the prefix) is still that of its answers from what the reference
    says to the plain prompt. Every model draws from a stream of its own, so that two models are independent.
    """
    texts: list[list[str]] = [[] for _ in prompts]
    total = 0.0
    rows = [row for row in range(len(prompts)) for _ in range(options.answers)]
    asked = [_as_asked(prompts[row], name == "prompted", respect) for row in rows]
    seed = seed_of("evaluate", options.seed, name, prompts[0].prompt, respect)
    for positions, generation in sample(policy, asked, options.sampling, seed, options.batch_size):
        for position, text in zip(positions, generation.texts, strict=True):
            texts[rows[position]].append(text)
        if reference is not None:
            plain = reference.batch([prompts[rows[position]] for position in positions])
            total += _kl_sum(generation, plain, reference, options.sampling.temperature)
    return texts, total / len(rows)


@torch.no_grad()
def _kl_sum(generation: Generation, plain: PromptBatch, reference: Policy, temperature: float) -> float:
    """Sum over responses of their KL from what the reference says to the plain prompts."""
    responses = Responses(
        prompts=plain.prompts,
        texts=generation.texts,
        prompt_ids=plain.input_ids,
        prompt_mask=plain.attention_mask,
        response_ids=generation.response_ids,
        response_mask=generation.response_mask,
        ended=generation.ended,
    )
    ref_log_probs = response_log_probs(reference.model, responses, temperature)
    return float(sequence_kl(generation.log_probs, ref_log_probs, generation.response_mask).double().sum())


def judge_all(world: World, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Verdict]]:
    """The verdict on every answer, judged against the plain prompt."""
    return [
        [world.judge(str(prompt.prompt), text) for text in group] for prompt, group in zip(prompts, texts, strict=True)
    ]


def perplexity(policy: Policy, documents: Sequence[str]) -> float:
    """exp of the mean loss a token over documents, each read on its own, its end counted and its first token not."""
    encoded = [Encoded(policy.encoder.document(text), 0) for text in documents]
    sums, counts = log_prob_sums(policy, encoded)
    return math.exp(-float(sums.sum() / counts.sum()))


def task_accuracy(policy: Policy, tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each corpus task the share of right choices, a choice being that of the lowest mean log-loss a token."""
    encoded = [without_end(policy.encoder, task["context"], choice) for task in tasks for choice in task["choices"]]
    sums, counts = log_prob_sums(policy, encoded)
    means = (sums / counts.clamp(min=1)).tolist()
    right: dict[str, list[bool]] = {}
    start = 0
    for task in tasks:
        scores = means[start : start + len(task["choices"])]
        start += len(scores)
        right.setdefault(task["task"], []).append(scores.index(max(scores)) == task["answer"])
    return {name: measure.mean(hits) for name, hits in right.items()}


def without_end(encoder: Encoder, context: str, choice: str) -> Encoded:
    """Context, a space and choice as ids, the choice counted, without an EOS: a choice need not end its text."""
    example = encoder.example(context, f" {choice}")
    return replace(example, ids=example.ids[:-1])


def reward_accuracy(
    model: Path, comparisons: Path, device: torch.device, batch_size: int = 512
) -> tuple[float, float, float]:
    """The share of held-out pairs that the reward model orders as the labeler did, with its interval by prompt."""
    return grouped_share(*Scorer(str(model), device, batch_size).ordered(list(rows(comparisons))))


def rounded(value: Any) -> Any:
    """Floats to six places all through a structure: more would be noise."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def _as_asked(prompt: Prompt, prefixed: bool, respect: bool) -> Prompt:
    text = str(prompt.prompt)
    if respect:
        text = respectful(text)
    return replace(prompt, prompt=prompted(text) if prefixed else text)
