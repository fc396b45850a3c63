"""A round of the loop by its own commands, in one process, on a policy and reward models of a few thousand weights."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl
from transformers import PreTrainedTokenizerFast

from instructlit.cli import main
from instructlit.labels import read_labels, read_tasks
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.lineage import make_record, parent, weights_digest
from instructlit.tools.scoring import Scorer
from instructlit.world import World, sample_spec


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path, tiny_gpt2_dir: Path) -> Path:
    """`run/rounds/1` with two policies and prompts of the world."""
    home = tmp_path / "run" / "rounds" / "1"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    Path("sft").symlink_to(tiny_llama_dir)
    Path("ppo").symlink_to(tiny_gpt2_dir)
    rng = random.Random(0)
    prompts = dict.fromkeys(sample_spec(rng, kind="open_capital").render() for _ in range(60))
    write_jsonl(Path("prompts.jsonl"), ({"prompt": prompt} for prompt in list(prompts)[:8]))
    return home


def run(*words: Any) -> None:
    assert main([str(word) for word in words]) == 0


def test_a_round(home: Path, char_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ["--prompts", "prompts.jsonl", "--max_new_tokens", "4", "--device", "cpu"]
    run("collect", "sft", *sampling, "--completions", "4", "--round", "1")
    run("world", "rank", "tasks.jsonl", "--labelers", "3")
    labels = read_labels("labels.jsonl")
    assert len(labels) == 3 * 8
    assert all(len({one.labeler for one in labels if one.task == task.task}) == 3 for task in read_tasks("tasks.jsonl"))
    run("world", "rank", "tasks.jsonl", "--labelers", "3", "--output", "again.jsonl")
    assert read_labels("again.jsonl") == labels, "simulated labelers say the same again"
    edge = "0.303"  # between the two prompts whose answers do not all tie
    run("labels", "export", "labels.jsonl", "--tasks", "tasks.jsonl", "--validation_fraction", edge)
    held_out = [json.loads(line) for line in Path("data/comparisons_validation.jsonl").read_text().splitlines()]
    assert {name for row in held_out for name in row["policy"]} == {"sft"}

    def reward_model(name: str, seed: int, files: list[dict[str, Any]]) -> float:
        """Makes one with a head of its own; the share of the held-out pairs that it orders as the labelers did."""
        torch.manual_seed(seed)
        model = load_scalar_model(Backbone("sft"))
        for weight in model.head.parameters():
            torch.nn.init.normal_(weight)
        record = make_record("reward", parents=[parent("sft", "init")], data=files)
        export_folder(model, char_tokenizer, f"models/{name}", record)
        right, pairs = Scorer(f"models/{name}", torch.device("cpu")).ordered(held_out)
        return sum(right) / sum(pairs)

    before = reward_model("before", 0, [{"path": "data/comparisons.jsonl", "sha256": "0" * 64, "rows": 1}])
    # Answers differ from processor to processor, by their last bits: the first model that orders them otherwise.
    now = next(now for seed in range(1, 50) if (now := reward_model("now", seed, [])) != before)
    run("collect", "ppo", "sft", *sampling, "--kind", "evaluation", "--output", "contest/tasks.jsonl")
    run("world", "rank", "contest/tasks.jsonl", "--output", "contest/labels.jsonl")
    run(
        "iterate", "measure", 2, "--reward", "models/now", "--data", "data", "--reward_before", "models/before",
        "--data_before", "data", "--contest", "contest/labels.jsonl", "--contest_tasks", "contest/tasks.jsonl",
        "--policy", "ppo", "--policy_before", "sft", "--device", "cpu",
    )  # fmt: skip
    found = json.loads(Path("round.json").read_text())
    assert (found["accuracy"], found["accuracy_before"], found["accuracy_then"]) == (now, before, before)
    assert 0 <= found["preference_low"] <= found["preference"] <= found["preference_high"] <= 1
    assert found["contest_tasks"] == 8

    run("judge", "reward:models/now", "tasks.jsonl", "--output", "judged.jsonl", "--labeler", "judge")
    judged = read_labels("judged.jsonl")
    rows = [vars(one) for one in judged]
    right, pairs = Scorer("models/now", torch.device("cpu")).ordered(rows)
    assert sum(right) == sum(pairs) > 0, "the ranks of a reward model are the order of its scores"
    assert {name for one in judged for name in one.policy or ()} == {"sft"}

    shutil.copytree("models/now", "models/.now.partial-1-0a")  # what a kill leaves of a folder that was being written
    capsys.readouterr()
    assert main(["lineage", str(home.parents[1])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"rounds/1/sft  {(weights_digest('sft') or '')[:12]}" in " ".join(lines)
    assert "    from rounds/1/sft  (wrote 32 answers)" in lines
    assert not [line for line in lines if ".now.partial" in line]
    assert [line for line in lines if "!" in line] == ["    ! rounds/1/data/comparisons.jsonl changed since"]
    assert main(["lineage", str(home.parents[1]), "--form", "mermaid"]) == 1
    assert "|wrote 32 answers|" in capsys.readouterr().out
    assert main(["lineage", str(home.parents[1]), "--form", "svg"]) == 1
    drawn = capsys.readouterr().out
    assert "wrote 32 answers" in drawn
    assert "data/comparisons.jsonl changed since" in drawn


def test_simulated_labelers_do_not_depend_on_the_tasks_around(home: Path) -> None:
    sampling = ["--prompts", "prompts.jsonl", "--max_new_tokens", "4", "--device", "cpu"]
    run("collect", "sft", *sampling)
    run("world", "rank", "tasks.jsonl")
    every = {one.task: one for one in read_labels("labels.jsonl")}
    lines = Path("tasks.jsonl").read_text().splitlines(keepends=True)
    Path("one.jsonl").write_text(lines[5])
    run("world", "rank", "one.jsonl", "--output", "one_label.jsonl")
    (alone,) = read_labels("one_label.jsonl")
    assert alone.ranks == every[alone.task].ranks
    assert alone.labeler == every[alone.task].labeler
    assert World(1).judge(str(alone.prompt), alone.completions[0]), "they are prompts of the world"
