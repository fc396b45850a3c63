"""What is measured of a model in the embedded world, on models whose every probability is known."""

import json
import math
from pathlib import Path

import pytest
import torch

from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.rollout.engine import Sampling
from instructlit.tools.world.answers import Policy, log_prob_sums
from instructlit.tools.world.evaluate import (
    Options,
    answer_all,
    distinct,
    perplexity,
    reward_accuracy,
    task_accuracy,
    without_end,
    world_evaluate,
)
from instructlit.tools.world.generate import world as write_world
from instructlit.tools.world.label import world_label
from instructlit.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("what is the capital of norland ? answer :"), Prompt("name the maker of the boat . answer :")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trial's data and models of random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_world(str(folder / "data"), seed=5, trial=True)
    torch.manual_seed(0)
    untrained = str(folder / "data" / "untrained")
    tokenizer = Policy.load(_export(folder, "sft", untrained), CPU).tokenizer
    for name in ("base", "ppo-ema", "ppo_ptx-ema"):
        _export(folder, name, untrained)
    head = load_scalar_model(Backbone(str(folder / "models" / "sft")))
    export_folder(head, tokenizer, folder / "models" / "reward", {})
    return folder


def _export(folder: Path, name: str, untrained: str) -> Path:
    from instructlit.data.tokenizers import load_tokenizer

    model = load_causal_lm(Backbone(untrained, random_init=True))
    with torch.no_grad():  # away from uniform, so that two models differ
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return Path(export_folder(model, load_tokenizer(untrained), folder / "models" / name, {}))


@pytest.fixture
def policy(run: Path) -> Policy:
    return Policy.load(run / "models" / "sft", CPU)


@pytest.fixture
def uniform(run: Path) -> Policy:
    policy = Policy.load(run / "models" / "sft", CPU)
    for parameter in policy.model.parameters():
        parameter.zero_()
    return policy


def options(answers: int = 2) -> Options:
    return Options(seed=1, answers=answers, sampling=Sampling(12), batch_size=8)


def test_a_uniform_models_perplexity_is_the_size_of_its_vocabulary(uniform: Policy) -> None:
    found = perplexity(uniform, ["the cow eats plum .", "tom saw a boat . once"])
    assert found == pytest.approx(uniform.model.config.vocab_size, rel=1e-5)


def test_perplexity_by_hand_counts_the_end_and_not_the_first_token(policy: Policy) -> None:
    texts = ["the cow eats plum .", "tom saw a boat"]
    loss, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]])
        log_probs = policy.model(input_ids=ids).logits.log_softmax(-1)
        loss -= sum(float(log_probs[0, t - 1, ids[0, t]]) for t in range(1, ids.shape[1]))
        tokens += ids.shape[1] - 1
    assert tokens == 5 + 4
    assert perplexity(policy, texts) == pytest.approx(math.exp(loss / tokens), rel=1e-4)


def test_batching_changes_no_log_prob(policy: Policy) -> None:
    rows = [without_end(policy.encoder, "tom saw", choice) for choice in ("a boat .", "boat", "the old bear . once")]
    together, counts = log_prob_sums(policy, rows, batch_size=3)
    alone, _ = log_prob_sums(policy, rows, batch_size=1)
    assert counts.tolist() == [3, 1, 5]
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_a_choice_is_read_as_the_words_it_is_made_of(policy: Policy) -> None:
    row = without_end(policy.encoder, "the cow eats", "plum .")
    assert row.ids == policy.tokenizer("the cow eats plum .")["input_ids"]
    assert row.ids[row.start :] == policy.tokenizer("plum .")["input_ids"]


def test_tasks_go_by_the_mean_not_the_sum(policy: Policy) -> None:
    choices = ["boat", "boat . the cow eats plum . the cow eats plum ."]
    rows = [without_end(policy.encoder, "tom saw a", choice) for choice in choices]
    sums, counts = log_prob_sums(policy, rows)
    means = (sums / counts).tolist()
    assert sums[0] > sums[1], "a longer text is less likely as a whole"
    best = means.index(max(means))
    task = {"task": "t", "context": "tom saw a", "choices": choices, "answer": best}
    assert task_accuracy(policy, [task, {**task, "answer": 1 - best}]) == {"t": 0.5}


def test_kl_of_a_model_from_itself_is_zero_and_from_another_is_not(run: Path, policy: Policy, uniform: Policy) -> None:
    _, same = answer_all(policy, "sft", PROMPTS * 4, policy, options())
    assert same == pytest.approx(0.0, abs=1e-4)
    _, far = answer_all(policy, "sft", PROMPTS * 4, uniform, options())
    assert far > 1.0
    _, asked_otherwise = answer_all(policy, "prompted", PROMPTS * 4, policy, options())
    assert abs(asked_otherwise) > 0.01, "behind a prefix the same weights answer otherwise"


def test_answers_depend_on_the_seed_and_the_model_alone(policy: Policy) -> None:
    first, _ = answer_all(policy, "sft", PROMPTS, None, options())
    assert first == answer_all(policy, "sft", PROMPTS, None, options())[0]
    assert first != answer_all(policy, "ppo", PROMPTS, None, options())[0], "each model draws from a stream of its own"
    assert [len(group) for group in first] == [2, 2]
    assert all(group[0] != group[1] for group in first)


def test_distinct_keeps_the_first_of_a_text() -> None:
    rows = [Prompt("a", user="1"), Prompt("b", user="2"), Prompt("a", user="3")]
    assert [row.user for row in distinct(rows)] == ["1", "2"]


def test_label_then_evaluate_twice_gives_the_same_results(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    world_label(policies=["models/sft", "models/base@1.3"], seed=1, trial=True, max_new_tokens=12)
    rows = [json.loads(line) for line in (run / "data" / "comparisons.jsonl").read_text().splitlines()]
    assert {len(row["completions"]) for row in rows} <= set(range(4, 10))
    assert {name for row in rows for name in row["policy"]} == {"models/sft", "models/base@1.3"}
    assert all(len(row["ranks"]) == len(row["completions"]) == len(row["policy"]) for row in rows)
    before = (run / "data" / "comparisons.jsonl").read_bytes()
    world_label(policies=["models/sft", "models/base@1.3"], seed=1, trial=True, max_new_tokens=12)
    assert (run / "data" / "comparisons.jsonl").read_bytes() == before

    world_evaluate(seed=1, trial=True, max_new_tokens=12)
    first = (run / "results.json").read_bytes()
    world_evaluate(seed=1, trial=True, max_new_tokens=12)
    assert (run / "results.json").read_bytes() == first
    results = json.loads(first)
    assert [model["name"] for model in results["models"]] == ["base", "prompted", "sft", "ppo", "ppo_ptx"]
    sft = results["models"][2]
    assert [sft[key] for key in ("preference", "preference_low", "preference_high")] == [0.5, 0.5, 0.5]
    keys = "preference preference_low preference_high rating constraints hallucination truthful toxicity"
    wanted = {"name", *keys.split(), "toxicity_respectful", "kl", "perplexity"}
    assert all(wanted <= set(model) for model in results["models"])
    assert {"seed", "seconds", "reward_accuracy", "labeler_agreement"} <= set(results)


def test_reward_accuracy_counts_pairs_by_the_models_own_scores(run: Path, tmp_path: Path) -> None:
    from instructlit.data.tokenization import Encoder
    from instructlit.data.tokenizers import load_tokenizer

    folder = run / "models" / "reward"
    encoder = Encoder(load_tokenizer(str(folder)))
    network = load_scalar_model(Backbone(str(folder)), require_head=True).eval()
    texts = ["olmar .", "tarn .", "it is lund ."]
    scores: list[float] = []
    for text in texts:
        ids = torch.tensor([encoder.example(str(PROMPTS[0].prompt), text).ids])
        scores += network.score(ids, torch.ones_like(ids, dtype=torch.bool)).tolist()
    order = sorted(range(3), key=lambda i: -scores[i])
    ranks = [order.index(i) + 1 for i in range(3)]
    path = tmp_path / "comparisons.jsonl"
    for given, expected in ((ranks, 1.0), ([4 - rank for rank in ranks], 0.0)):
        path.write_text(json.dumps({"prompt": PROMPTS[0].prompt, "completions": texts, "ranks": given}) + "\n")
        assert reward_accuracy(folder, path, CPU)[0] == expected
