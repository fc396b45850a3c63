"""What is measured of a model in the embedded world, on models whose every probability is known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl

from instructlit.cli import main
from instructlit.data.tokenizers import load_tokenizer
from instructlit.evaluation import Answer, Desk, Outcome, Study
from instructlit.evaluation.divergence import asked_of_reference, log_ratios
from instructlit.evaluation.language_model import LanguageModel
from instructlit.evaluation.requests import Ask, Weigh
from instructlit.evaluation.store import Store
from instructlit.evaluation.tasks import MultipleChoice, Perplexity
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.tools.world.answers import load_policy
from instructlit.tools.world.generate import world as write_world
from instructlit.tools.world.label import world_label
from instructlit.tools.world.tasks import distinct
from instructlit.types import Prompt

PROMPTS = ["what is the capital of norland ? answer :", "name the maker of the boat . answer :"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trial's data and models of random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_world(str(folder / "data"), seed=5, trial=True)
    torch.manual_seed(0)
    untrained = str(folder / "data" / "untrained")
    for name in ("sft", "base", "ppo-ema", "ppo_ptx-ema"):
        _export(folder, name, untrained)
    head = load_scalar_model(Backbone(str(folder / "models" / "sft")))
    export_folder(head, load_tokenizer(untrained), folder / "models" / "reward", {})
    (folder / "samples").mkdir()
    for name in ("ppo", "ppo_ptx"):
        rows = [
            {"iteration": i, "prompt": PROMPTS[0], "response": "lund .", "score": 0.5 * i, "kl": 1.0 * i}
            for i in range(3)
        ]
        write_jsonl(folder / "samples" / f"{name}.jsonl", rows)
    return folder


def _export(folder: Path, name: str, untrained: str) -> Path:
    model = load_causal_lm(Backbone(untrained, random_init=True))
    with torch.no_grad():  # away from uniform, so that two models differ
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return Path(export_folder(model, load_tokenizer(untrained), folder / "models" / name, {}))


@pytest.fixture
def policy(run: Path) -> LanguageModel:
    return load_policy(run / "models" / "sft")


@pytest.fixture
def uniform(run: Path) -> LanguageModel:
    model = load_policy(run / "models" / "sft")
    for parameter in model.model.parameters():
        parameter.zero_()
    return model


def measured(task: Any, model: LanguageModel, folder: Path) -> Outcome:
    """A task's figures for one model."""
    requests = task.requests()
    replies = dict(model.replies(requests))
    study = Study(["m"], {"m": [replies[i] for i in range(len(requests))]}, Desk({}, Store(folder / "v")), "m", "m")
    return task.measure(study)


def perplexity(model: LanguageModel, folder: Path, texts: list[str]) -> float:
    write_jsonl(folder / "texts.jsonl", ({"text": text} for text in texts))
    task = Perplexity(str(folder / "texts.jsonl"), documents=True)
    return measured(task, model, folder).measures[0].figures["m"].value


def test_a_uniform_models_perplexity_is_the_size_of_its_vocabulary(uniform: LanguageModel, tmp_path: Path) -> None:
    found = perplexity(uniform, tmp_path, ["the cow eats plum .", "tom saw a boat . once"])
    assert found == pytest.approx(uniform.model.config.vocab_size, rel=1e-5)


def test_perplexity_by_hand_counts_the_end_and_not_the_first_token(policy: LanguageModel, tmp_path: Path) -> None:
    texts = ["the cow eats plum .", "tom saw a boat"]
    loss, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]])
        log_probs = policy.model(input_ids=ids).logits.log_softmax(-1)
        loss -= sum(float(log_probs[0, t - 1, ids[0, t]]) for t in range(1, ids.shape[1]))
        tokens += ids.shape[1] - 1
    assert tokens == 5 + 4
    assert perplexity(policy, tmp_path, texts) == pytest.approx(math.exp(loss / tokens), rel=1e-4)


def test_choices_go_by_the_mean_not_the_sum(policy: LanguageModel, tmp_path: Path) -> None:
    choices = ["boat", "boat . the cow eats plum . the cow eats plum ."]
    [(_, reply)] = policy.replies([Weigh("tom saw a", tuple(f" {c}" for c in choices), plain=False)])
    assert reply is not None
    assert not isinstance(reply, Answer)
    assert reply.tokens == [1, 12]
    assert reply.log_probs[0] > reply.log_probs[1], "a longer text is less likely as a whole"
    best = reply.means.index(max(reply.means))
    row = {"task": "t", "context": "tom saw a", "choices": choices}
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, (row | {"answer": answer} for answer in (best, 1 - best)))
    [column] = measured(MultipleChoice(str(path)), policy, tmp_path).measures
    assert (column.name, column.figures["m"].value, column.figures["m"].n) == ("choices/t", 0.5, 2)


def test_kl_is_of_the_very_tokens_that_were_drawn(
    policy: LanguageModel, uniform: LanguageModel, tmp_path: Path
) -> None:
    asks = [Ask(p, 12, 1.0, 8, stream="{model}", log_probs=True) for p in PROMPTS]
    names = {"sft": uniform, "same": uniform, "far": policy}
    replies = {}
    for name, model in names.items():
        found = dict(model.replies([ask.of(name, "") for ask in asks]))
        replies[name] = [found[i] for i in range(len(asks))]
    study = Study(list(names), replies, Desk({}, Store(tmp_path / "v")), "sft")
    asked = asked_of_reference(study, "sft", PROMPTS)["sft"]
    assert len(asked) == 4, "the reference is not asked about its own answers"
    further = dict(uniform.replies(asked))
    study.further = {"sft": [further[i] for i in range(len(asked))]}
    ratios = log_ratios(study, "sft", PROMPTS)
    assert ratios["sft"] == [[0.0] * 8] * 2
    assert max(abs(r) for row in ratios["same"] for r in row or []) < 1e-4
    size = uniform.model.config.vocab_size
    for reply, row in zip(replies["far"], ratios["far"], strict=True):
        assert isinstance(reply, Answer)
        assert [len(t) for t in reply.tokens] == [
            12 if not e else len(t) for t, e in zip(reply.tokens, reply.ended, strict=True)
        ]
        by_hand = [p + len(t) * math.log(size) for p, t in zip(reply.log_probs, reply.tokens, strict=True)]
        assert row == pytest.approx(by_hand, abs=1e-3)


def test_a_model_of_another_tokenizer_says_nothing_of_tokens(policy: LanguageModel) -> None:
    [(_, known), (_, unknown), (_, beyond)] = sorted(
        policy.replies(
            [
                Weigh(PROMPTS[0], ((5, 6),), plain=False, says=(policy.tokenizer.decode([5, 6]).strip(),)),
                Weigh(PROMPTS[0], ((5, 6),), plain=False, says=("something else",)),
                Weigh(PROMPTS[0], ((10**6,),), plain=False, says=("",)),
            ]
        ),
        key=lambda found: found[0],
    )
    assert known is not None
    assert (unknown, beyond) == (None, None)


def test_each_model_draws_from_a_stream_of_its_own(policy: LanguageModel) -> None:
    asks = [Ask(p, 12, 1.0, 2, stream="{model} 1") for p in PROMPTS]

    def said(name: str) -> list[Any]:
        return [
            reply for _, reply in sorted(policy.replies([a.of(name, "") for a in asks]), key=lambda found: found[0])
        ]

    assert said("sft") == said("sft")
    assert said("sft") != said("ppo")


def test_distinct_keeps_the_first_of_a_text() -> None:
    rows = [Prompt("a", user="1"), Prompt("b", user="2"), Prompt("a", user="3")]
    assert [row.user for row in distinct(rows)] == ["1", "2"]


def test_label_then_evaluate_and_compare(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    world_label(policies=["models/sft", "models/base@1.3"], seed=1, trial=True, max_new_tokens=12)
    rows = [json.loads(line) for line in (run / "data" / "comparisons.jsonl").read_text().splitlines()]
    assert {len(row["completions"]) for row in rows} <= set(range(4, 10))
    assert {name for row in rows for name in row["policy"]} == {"models/sft", "models/base@1.3"}
    assert all(len(row["ranks"]) == len(row["completions"]) == len(row["policy"]) for row in rows)
    ends = [
        (len(text.split()), end) for row in rows for text, end in zip(row["completions"], row["ended"], strict=True)
    ]
    assert {end for _, end in ends} == {True, False}
    assert all(words < 12 for words, end in ends if end), "EOS was one of the twelve tokens"
    assert not any(end for words, end in ends if words == 12)
    before = (run / "data" / "comparisons.jsonl").read_bytes()
    world_label(policies=["models/sft", "models/base@1.3"], seed=1, trial=True, max_new_tokens=12)
    assert (run / "data" / "comparisons.jsonl").read_bytes() == before

    words = ["evaluate", "--suite", "world", "--output", ".", "--limit", "6", "--dtype", "float32"]
    words += [f"{task}.max_new_tokens=8" for task in ("--options=answers", "--options=rudeness")]
    assert main(words) == 0
    first = (run / "results.json").read_bytes()
    measures = {m["name"]: m["figures"] for m in json.loads(first)["measures"]}
    names = ["base", "prompted", "sft", "ppo", "ppo_ptx"]
    for name in ("preference/gold/win_rate", "world/kl", "world/rude_respectful", "perplexity/corpus/token"):
        assert list(measures[name]) == names
    assert [measures["preference/gold/win_rate"]["sft"][k] for k in ("value", "low", "high")] == [0.5] * 3
    assert measures["world/kl"]["sft"]["value"] == 0.0
    assert measures["world/kl"]["ppo"]["value"] > 0.0
    assert measures["world/kl"]["prompted"] != measures["world/kl"]["base"], "behind a prefix it answers otherwise"
    assert measures["perplexity/corpus/token"]["prompted"] == measures["perplexity/corpus/token"]["base"]
    curve = next(c for c in json.loads(first)["curves"] if c["y"] == "score by reward")
    assert curve["series"]["PPO"] == [[0.0, 0.0], [1.0, 0.5], [pytest.approx(math.sqrt(2)), 1.0]]
    assert len(curve["series"]["best-of-n of SFT"]) == 5

    # a stream that was cut off is drawn again from its beginning: the same figures as without the cut
    kept = (run / "replies.jsonl").read_text().splitlines(keepends=True)
    (run / "replies.jsonl").write_text("".join(kept[:20]) + kept[20][:30])
    assert main(words) == 0
    assert (run / "results.json").read_bytes() == first
    again = (run / "replies.jsonl").read_text().splitlines(keepends=True)
    said = {row["key"]: row["value"] for row in map(json.loads, kept)}
    assert {row["key"]: row["value"] for row in map(json.loads, again)} == said, "to the last token"

    capsys.readouterr()
    assert main(["world", "compare", "models/ppo-ema", "models/sft", "--prompts", "4", "--max_new_tokens", "8"]) == 0
    assert "is preferred to models/sft" in capsys.readouterr().out


def test_reward_accuracy_counts_pairs_by_the_models_own_scores(run: Path, tmp_path: Path) -> None:
    from instructlit.data.tokenization import Encoder
    from instructlit.evaluation.judges import RewardJudge
    from instructlit.evaluation.tasks import RewardQuality

    folder = run / "models" / "reward"
    encoder = Encoder(load_tokenizer(str(folder)))
    network = load_scalar_model(Backbone(str(folder)), require_head=True).eval()
    texts = ["olmar .", "tarn .", "it is lund ."]
    scores: list[float] = []
    for text in texts:
        ids = torch.tensor([encoder.example(PROMPTS[0], text).ids])
        scores += network.score(ids, torch.ones_like(ids, dtype=torch.bool)).tolist()
    order = sorted(range(3), key=lambda i: -scores[i])
    ranks = [order.index(i) + 1 for i in range(3)]
    path = tmp_path / "comparisons.jsonl"
    desk = Desk({"reward": RewardJudge(str(folder))}, Store(tmp_path / "v"))
    for given, expected in ((ranks, 1.0), ([4 - rank for rank in ranks], 0.0)):
        path.write_text(json.dumps({"prompt": PROMPTS[0], "completions": texts, "ranks": given}) + "\n")
        outcome = RewardQuality(str(path)).measure(Study([], {}, desk))
        assert outcome.measures[0].figures["reward"].value == expected
