"""`instructlit benchmark` does the work it says, on the rows it says, and prints one line."""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPARISONS, DEMONSTRATIONS, EOS_ID, PROMPTS, write_jsonl
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from instructlit.cli import main
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.modules import PPOModule
from instructlit.tools.benchmark.generate import bytes_per_step

Line = Callable[..., dict[str, Any]]


@pytest.fixture
def line(tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    def run(workload: str, rows: list[dict[str, Any]], *options: str) -> dict[str, Any]:
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        threads = torch.get_num_threads()
        words = ["benchmark", workload, "--model", str(tiny_llama_dir), "--data", str(data), *options]
        try:
            assert main(words) == 0
        finally:
            torch.set_num_threads(threads)
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return run


def first(rows: list[dict[str, Any]], count: int, seed: int = 1) -> list[dict[str, Any]]:
    """The rows of the first step."""
    return [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


@pytest.mark.parametrize("seed", [1, 2])
def test_sft(line: Line, tiny_llama_dir: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")  # it is one process, whatever stands around it
    before = time.process_time()
    found = line("sft", DEMONSTRATIONS, "--limit", "12", "--batch_size", "4", "--seed", str(seed))
    assert before - 0.01 <= found["process_cpu_s"] <= time.process_time() + 0.01
    unit = 1 if sys.platform == "darwin" else 1024
    assert found["peak_rss_mb"] == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 0.01
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    losses = []
    for row in first(DEMONSTRATIONS[:12], 4, seed):
        prompt, rest = ids(row["prompt"]), [*ids(row["completion"]), EOS_ID]
        logits = model(input_ids=torch.tensor([prompt + rest])).logits[0, len(prompt) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(rest), reduction="none"))
    assert found["loss_first"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
    assert found["loss_last"] != found["loss_first"]
    assert found["steps"] == 3
    assert found["tokens"] == sum(len(r["prompt"] + r["completion"]) + 1 for r in DEMONSTRATIONS[:12])
    assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["seconds"], rel=0.01)
    lengths = [len(r["prompt"] + r["completion"]) + 1 for r in first(DEMONSTRATIONS[:12], 12, seed)[4:]]
    # two layers of width 32, an MLP of 64 and two heads of keys; five norms; a head of 128 rows
    weights = 2 * (32 * (32 + 2 * 16 + 32) + 3 * 32 * 64) + 5 * 32 + 32 * 128
    operations = 6 * weights * sum(lengths) + 12 * 2 * 32 * sum(n * n for n in lengths) / 2
    assert found["model_tflops_per_s"] * 1e12 == pytest.approx(operations / (2 * found["step_ms"] / 1000), rel=0.01)
    assert {"prep_s", "process_cpu_s", "peak_rss_mb", "precision", "threads"} <= found.keys()


def test_compiled_blocks_learn_the_same(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = (line("sft", DEMONSTRATIONS, "--limit", "12", "--batch_size", "4", *options)
                       for options in ([], ["--compile"]))  # fmt: skip
    assert compiled["compile"]
    assert not plain["compile"]
    assert compiled["loss_last"] == pytest.approx(plain["loss_last"], abs=2e-4)


def test_reward(line: Line, tiny_llama_dir: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = tmp_path / "tiny-rm"
    model = load_scalar_model(Backbone(str(tiny_llama_dir)))
    model.hf.save_pretrained(folder)
    for file in tiny_llama_dir.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    found = line("reward", COMPARISONS, "--batch_size", "2", "--reward_model", str(folder), "--precision", "bf16-mixed")
    assert not [w for w in recwarn if "Total length of `list`" in str(w.message)], "nothing is to be held out"
    losses = []
    for row in first(COMPARISONS, 2):
        scores = []
        for text in row["completions"]:
            sequence = torch.tensor([[*ids(row["prompt"] + text), EOS_ID]])
            scores.append(model.score(sequence, torch.ones_like(sequence)))
        pairs = [(a, b) for a, x in zip(scores, row["ranks"], strict=True)
                 for b, y in zip(scores, row["ranks"], strict=True) if x < y]  # fmt: skip
        losses.append(-torch.stack([logsigmoid(a - b) for a, b in pairs]).mean())
    assert found["loss_first"] == pytest.approx(float(torch.stack(losses).mean()), abs=2e-2)
    assert found["precision"] == "bf16-mixed"
    pairs_of = {2: 1, 3: 3, 4: 5}  # of four completions two tie
    expected = sum(pairs_of[len(row["completions"])] for row in COMPARISONS) / found["seconds"]
    assert found["pairs_per_s"] == pytest.approx(expected, rel=0.01)


def test_ppo(line: Line, tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updated: list[int] = []
    update = PPOModule.update
    monkeypatch.setattr(
        PPOModule, "update", lambda self, part, *rest: (updated.append(len(part)), update(self, part, *rest))
    )
    options = ("--batch_size", "8", "--max_new_tokens", "4", "--ppo_epochs", "2")
    folder = tmp_path / "tiny-rm"
    load_scalar_model(Backbone(str(tiny_llama_dir))).hf.save_pretrained(folder)
    for file in tiny_llama_dir.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    found = line("ppo", PROMPTS, *options, "--reward_model", str(folder))
    assert found["episodes"] == 16
    assert found["steps"] == 2
    assert updated == [2] * 16  # of two rollouts of 8, a fourth at a time, and each twice
    assert found["kl_first"] == pytest.approx(0, abs=1e-4)
    assert all(isinstance(found[name], float) for name in ("loss_first", "loss_last"))
    assert found["loss_first"] != found["loss_last"]
    assert found["engine_gap"] < 1e-4
    parts = zip(found["sampling_s"], found["scoring_s"], found["updating_s"], strict=True)
    assert [sum(part) for part in parts] == pytest.approx(found["rollout_s"], abs=1e-3)
    assert len(found["rollout_s"]) == 2
    assert all(s > 0 for name in ("sampling_s", "scoring_s", "updating_s") for s in found[name])
    assert sum(found["rollout_s"]) <= found["seconds"]


@pytest.mark.parametrize("kind", ["adapters", "whole"])
def test_ppo_on_frozen_trunks(
    kind: str, line: Line, tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny-rm"
    lora = Lora(rank=2) if kind == "adapters" else None
    model = load_scalar_model(Backbone(str(tiny_llama_dir), lora=lora))
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    for file in tiny_llama_dir.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    trained: list[PPOModule] = []
    update = PPOModule.update
    monkeypatch.setattr(PPOModule, "update", lambda self, *args: (trained.append(self), update(self, *args)))
    options = ("--batch_size", "8", "--max_new_tokens", "4", "--lora", "3", "--precision", "bf16-mixed")
    found = line("ppo", PROMPTS, *options, "--reward_model", str(folder))
    assert found["kl_first"] == pytest.approx(0, abs=0.05)
    module = trained[0]
    assert module.trainer.precision == "bf16-mixed"
    ranks = {m.rank for m in (module.backbone.lora, module.value_backbone.lora) if m is not None}
    assert ranks == {3}
    (reward,) = module.reward.networks()
    trunks = [
        {id(p) for name, p in m.named_parameters() if name.endswith("q_proj.base_layer.weight")}
        or {id(p) for name, p in m.named_parameters() if name.endswith("q_proj.weight")}
        for m in (module.trained_model, module.value_model, reward)
    ]
    assert all(trunks)
    assert trunks[1] == trunks[2]
    assert (trunks[0] == trunks[1]) == (kind == "adapters")
    for model in (module.trained_model, module.value_model):
        kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
        assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_generate(line: Line) -> None:
    prompts = [{"prompt": f"prompt {i} of sixteen"} for i in range(4)]
    found = line("generate", prompts, "--batch_size", "4", "--max_new_tokens", "5", "--precision", "bf16-mixed")
    assert found["new_tokens"] == 20
    assert found["new_tokens_per_s"] == pytest.approx(20 / found["seconds"], rel=0.01)
    whole = line("generate", prompts, "--batch_size", "4", "--max_new_tokens", "5")
    assert whole["bytes_per_step"] == 2 * found["bytes_per_step"] > 0, "decoded in 16 bits, weights and cache"
    assert "roof_share" not in found  # there is no GPU whose memory it would be a share of


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_that_a_step_reads(tied: bool) -> None:
    config = LlamaConfig(vocab_size=100, hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=16, tie_word_embeddings=tied)  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    layer = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 16 + 2 * 8  # q, k and v, o, MLP, norms
    weights = 2 * layer + 8 + 100 * 8  # the head once, and no embedding beside it
    cached = 2 * 2 * 4 * 3 * 10.5  # keys and values of 2 layers, 4 wide, of 3 rows
    assert bytes_per_step(model, 3, 10.5) == 2 * (weights + cached)


def test_overhead(line: Line) -> None:
    found = line("overhead", DEMONSTRATIONS, "--limit", "12", "--threads", "1")
    assert found["steps"] == 3
    assert len(found["overhead_ms_all"]) == 3
    assert found["bare_ms"] > 0
    assert sorted(found["overhead_ms_all"])[1] == found["overhead_ms"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "--limit: found 0"),
        (["--lora", "8"], "--lora: sft trains no adapters"),
        (["--threads", "99999999999"], "--threads: found 99999999999"),
        (["--data", "no.jsonl"], "--data: no such file"),
        (["--batch_size", "99"], "at least 99, one batch"),
        (["--device", "tpu"], "--device: tpu"),
        (["--seed", "-1"], "--seed: found -1"),
    ],
)
def test_what_cannot_be_is_said(
    options: list[str],
    message: str,
    tiny_llama_dir: Path,
    demonstrations_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", str(tiny_llama_dir), "--data", str(demonstrations_file), "--batch_size", "4", *options]
    assert main(["benchmark", "sft", *words]) == 2
    assert message in capsys.readouterr().err


def test_decoding_is_not_compiled(tiny_llama_dir: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["benchmark", "generate", "--model", str(tiny_llama_dir), "--data", str(prompts_file), "--compile"]) == 2
    )
    assert "--compile: decoding is never compiled" in capsys.readouterr().err
