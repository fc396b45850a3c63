"""`instructlit collect`: which prompts, whose answers, and that a second start repeats nothing."""

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS, write_jsonl
from kills import killed_while_writing
from transformers import PreTrainedTokenizerFast

from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.labels import read_tasks
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.tools.collect import answers as drawing
from instructlit.tools.collect.selection import at_random, disagreement, evenly, of_use_cases
from instructlit.tools.journal import Journal
from instructlit.tools.scoring import Scorer
from instructlit.types import Prompt


@pytest.fixture
def folder(tmp_path: Path, tiny_llama_dir: Path, tiny_gpt2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two policies and twelve prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft").symlink_to(tiny_llama_dir)
    (tmp_path / "ppo").symlink_to(tiny_gpt2_dir)
    write_jsonl(tmp_path / "prompts.jsonl", [{**row, "use_case": f"case{i % 3}"} for i, row in enumerate(PROMPTS[:12])])
    return tmp_path


def collect(*words: Any) -> int:
    return main(["collect", *map(str, words), "--max_new_tokens", "3", "--batch_size", "8", "--device", "cpu"])


def test_answers_differ_are_shuffled_and_told_apart_by_the_key_alone(folder: Path) -> None:
    words = ["sft@1.5", "ppo", "--prompts", "prompts.jsonl", "--completions", "4", "6", "--round", "3"]
    assert collect(*words, "--output", "tasks.jsonl") == 0
    tasks = read_tasks("tasks.jsonl")
    assert len(tasks) == 12
    first: set[str] = set()
    for task in tasks:
        assert 4 <= len(task.completions) <= 6
        assert len(set(task.completions)) == len(task.completions)
        assert task.policy is not None
        counts = {name: task.policy.count(name) for name in ("sft@1.5", "ppo")}
        assert max(counts.values()) - min(counts.values()) <= 1, "equal shares"
        assert (task.round, task.kind, task.scores) == (3, "comparison", None)
        first.add(task.policy[0])
    assert first == {"sft@1.5", "ppo"}, "no place belongs to a policy"
    blind = Path("tasks.jsonl").read_text()
    assert "sft" not in blind
    assert "ppo" not in blind
    made = json.loads(Path("tasks.made.json").read_text())
    assert len(made["from"]["weights_sha256"]["sft"]) == 64


def test_killed_and_started_again_it_repeats_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", "ppo", "--prompts", "prompts.jsonl"]
    assert collect(*words, "--output", "whole.jsonl") == 0
    drawn: list[str] = []
    put = Journal.put

    def kill_at_fourth(self: Journal, key: str, value: Any) -> None:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", kill_at_fourth)
    assert collect(*words, "--output", "cut.jsonl") == 130
    assert not Path("cut.jsonl").exists()
    partial = Path("cut.partial.jsonl")
    partial.write_bytes(partial.read_bytes()[:-5])  # as if the machine had gone down in the middle of a line

    def count(self: Journal, key: str, value: Any) -> None:
        drawn.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", count)
    kept = drawn[:2]
    drawn.clear()
    assert collect(*words, "--output", "cut.jsonl") == 0
    assert set(kept).isdisjoint(drawn), "what was on disk is not sampled again"
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("cut.key.jsonl").read_bytes() == Path("whole.key.jsonl").read_bytes()
    assert not partial.exists()
    capsys.readouterr()
    drawn.clear()
    partial.write_text("{}\n")  # as if killed when all was written and this not yet removed
    assert collect(*words, "--output", "cut.jsonl") == 0
    assert not drawn
    assert "already complete" in capsys.readouterr().out
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_record_of_what_tasks_were_made_from_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    words = ["sft", "--prompts", "prompts.jsonl", "--limit", "2"]
    assert collect(*words) == 0
    Path("tasks.made.json").write_text(damage)
    capsys.readouterr()
    assert collect(*words) == 2
    assert "tasks.made.json: is damaged" in capsys.readouterr().err
    Path("tasks.made.json").unlink()
    assert collect(*words) == 0


def test_a_record_that_was_being_written_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sft", "--prompts", "prompts.jsonl", "--limit", "2", "--output", "tasks.jsonl"]
    with monkeypatch.context() as patched:
        killed_while_writing(patched, "tasks.made.json")
        assert collect(*words) == 130
    assert collect(*words) == 0
    made = json.loads(Path("tasks.made.json").read_text())
    assert made["sha256"]["tasks.jsonl"] == hashlib.sha256(Path("tasks.jsonl").read_bytes()).hexdigest()


def test_tasks_go_into_the_labelling_database_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    from instructlit.labelling.database import Database
    from instructlit.labelling.schema import Task

    words = ["sft@1.5", "ppo", "--prompts", "prompts.jsonl", "--completions", "4", "--limit", "3", "--round", "2"]
    words += ["--output", "tasks.jsonl", "--database", "labels.db", "--overlap", "2"]
    assert collect(*words) == 0
    assert "labels.db: 3 new tasks, 0 already there" in capsys.readouterr().out
    assert collect(*words) == 0
    assert "labels.db: 0 new tasks, 3 already there" in capsys.readouterr().out
    with Database("labels.db").read() as session:
        found = list(session.scalars(sqlalchemy.select(Task).order_by(Task.id)))
    for task, asked in zip(found, read_tasks("tasks.jsonl"), strict=True):
        assert (task.prompt, task.completions, task.policies) == (asked.prompt, asked.completions, asked.policy)
        assert (task.kind, task.overlap, task.round, task.extra["instructlit_task"]) == ("comparison", 2, 2, asked.task)


def test_one_run_at_a_time_writes_a_journal(tmp_path: Path) -> None:
    """Two with different options that start together would leave one's answers under the other's name."""
    path = tmp_path / "t.partial.jsonl"
    first, second = Journal(path, {"policy": "a"}), Journal(path, {"policy": "b"})
    first.put("draw 0", ["of a"])
    with pytest.raises(UserError, match="another process is writing it"):
        second.put("draw 0", ["of b"])
    first.close()
    with pytest.raises(UserError, match="has done so since"):
        second.put("draw 0", ["of b"])
    assert Journal(path, {"policy": "a"})["draw 0"] == ["of a"]


def test_an_interrupted_run_with_other_options_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = Journal(folder / "t.partial.jsonl", {"seed": 5})
    begun.put("draw 0 0 0", [])
    begun.close()
    assert collect("sft", "--prompts", "prompts.jsonl", "--output", "t.jsonl") == 2
    told = capsys.readouterr().err
    assert "other options" in told
    assert "seed" in told
    (folder / "t.partial.jsonl").write_text("not ours\n")
    assert collect("sft", "--prompts", "prompts.jsonl", "--output", "t.jsonl") == 2


def test_an_evaluation_has_one_answer_of_each_policy_and_keeps_ties(folder: Path) -> None:
    shutil.copytree(folder / "sft", folder / "same")
    words = ["--prompts", "prompts.jsonl", "--kind", "evaluation", "--output", "e.jsonl", "--limit", "5"]
    assert collect("sft", "same", *words) == 0
    tasks = read_tasks("e.jsonl")
    assert len(tasks) == 5
    assert all(sorted(task.policy or ()) == ["same", "sft"] for task in tasks)
    assert {task.kind for task in tasks} == {"evaluation"}


def test_repeated_answers_are_drawn_again_from_the_same_policy() -> None:
    wanted = drawing.Wanted([0, 0, 1])
    drawing._give(wanted, drawing.Answer("a", True, "m0"), 0, True)
    drawing._give(wanted, drawing.Answer("a", True, "m1"), 1, True)
    assert (wanted.sources, wanted.repeated) == ([0, 1], 1)
    drawing._give(wanted, drawing.Answer("b", True, "m1"), 1, True)
    assert [(answer.text, answer.policy) for answer in wanted.answers] == [("a", "m0"), ("b", "m1")]
    drawing._give(wanted, drawing.Answer("b", True, "m0"), 0, False)
    assert not wanted.sources


def reward_folder(path: Path, base: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    """A reward model with a head of its own."""
    torch.manual_seed(seed)
    model = load_scalar_model(Backbone(str(base)))
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    return export_folder(model, tokenizer, path, {"stage": "reward"})


def test_scores_and_disagreement(folder: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast) -> None:
    for seed in (1, 2):
        reward_folder(folder / f"rm{seed}", tiny_llama_dir, char_tokenizer, seed)
    words = ["sft", "--prompts", "prompts.jsonl", "--reward", "rm1", "--completions", "3"]
    assert collect(*words, "--output", "all.jsonl") == 0
    assert any(task.ended for task in read_tasks("all.jsonl")), "some were cut off"
    scored = {str(task.prompt): task for task in read_tasks("all.jsonl")}
    models = [Scorer(f"rm{seed}", torch.device("cpu")) for seed in (1, 2)]
    value = {}
    for prompt, task in scored.items():
        assert task.scores is not None
        rows = list(zip([task.prompt] * 3, task.completions, task.ended or [True] * 3, strict=True))
        assert task.scores == pytest.approx(models[0].scores(rows), abs=1e-4), "a score stands beside its completion"
        value[prompt] = disagreement([model.scores(rows) for model in models])
    chosen = ["--select", "disagreement", "--ensemble", "rm1", "rm2", "--limit", "4"]
    assert collect(*words, *chosen, "--output", "some.jsonl") == 0
    most = sorted(value, key=lambda prompt: -value[prompt])[:4]
    assert {str(task.prompt) for task in read_tasks("some.jsonl")} == set(most)


def test_what_labelers_ordered_is_scored_as_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "scores", lambda self, rows: [float(ended) for _, _, ended in rows])
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}
    scorer = Scorer.__new__(Scorer)  # without its model
    assert scorer.ordered([row, row | {"ended": [False, True]}]) == ([0.5, 1.0], [1, 1])


def test_a_reward_model_that_was_cut_off_is_told_before_anything_is_drawn(
    folder: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    tiny_llama_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = reward_folder(folder / "rm", tiny_llama_dir, char_tokenizer, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert collect("sft", "--prompts", "prompts.jsonl", "--reward", "rm", "--completions", "3") == 2
    assert not Path("tasks.partial.jsonl").exists()
    assert "rm: rm/model.safetensors cannot be read" in capsys.readouterr().err


def test_a_policy_that_cannot_answer_is_told_before_others_do(
    folder: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    reward_folder(folder / "rm", tiny_llama_dir, char_tokenizer, 1)
    assert collect("sft", "rm", "--prompts", "prompts.jsonl") == 2
    assert "rm is a reward model" in capsys.readouterr().err
    assert not list(folder.glob("tasks*.jsonl"))


def test_prompts_without_room_are_left_out_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "x" * 254}, {"prompt": "short: "}, {"prompt": "y" * 300}]
    write_jsonl(folder / "long.jsonl", rows)
    assert collect("sft@2", "ppo@2", "--prompts", "long.jsonl", "--completions", "2") == 0
    told = capsys.readouterr()
    assert "left out: 2 prompts too long to leave room for 3 new tokens in the model's 256 positions" in told.err
    assert "the first is long.jsonl:1, with 254 tokens" in told.err
    assert "\r" not in told.out + told.err
    assert [task.prompt for task in read_tasks("tasks.jsonl")] == ["short: "]
    assert "tasks.jsonl: 1 task with 2 answers" in told.out
    write_jsonl(folder / "long.jsonl", rows[::2])
    assert collect("sft", "--prompts", "long.jsonl", "--output", "none.jsonl", "--database", "labels.db") == 2
    assert "long.jsonl:1: the prompt has 254 tokens and the answer may have 3" in capsys.readouterr().err
    assert not (folder / "labels.db").exists(), "refused before anything is made"


def test_disagreement_by_hand() -> None:
    assert disagreement([[0.0, 1.0], [5.0, 6.0]]) == pytest.approx(0.0), "a shift is no opinion"
    # sigmoid(1) and sigmoid(-1) are 0.731 and 0.269: deviation 0.231
    assert disagreement([[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)
    assert disagreement([[1000.0, 0.0], [0.0, 1000.0]]) == pytest.approx(0.5)
    assert disagreement([[1.0]]) == 0.0


def test_selection() -> None:
    prompts = [Prompt(f"p{i}", use_case=case) for i, case in enumerate("aaaaaabbc")]
    assert of_use_cases(prompts, ["b", "c"]) == [6, 7, 8]
    with pytest.raises(UserError, match="use cases among a, b, c"):
        of_use_cases(prompts, ["d"])
    chosen = evenly(prompts, range(9), 6, random.Random(0))
    assert [prompts[i].use_case for i in chosen].count("a") == 3
    assert {6, 7, 8} <= set(chosen), "a use case with few prompts gives all it has"
    assert at_random(range(9), 20, random.Random(0)) == list(range(9))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sft", "--reward", "./rm"], "./rm"),
        (["sft", "--reward", "ppo"], "ppo has no trained scalar head (GPT2LMHeadModel)"),
        (["sft", "--select", "disagreement", "--ensemble", "ppo", "sft"], "ppo has no trained scalar head"),
        (["sft", "--completions", "1"], "--completions: found 1"),
        (["sft", "--completions", "4", "10"], "--completions: found 4 10"),
        (["sft", "--kind", "evaluation"], "--policies: 1 policies are given"),
        (["sft", "--select", "disagreement"], "--ensemble"),
        (["sft", "--ensemble", "a", "b"], "--ensemble"),
        (["sft@hot"], "is not a temperature"),
        (["sft", "--limit", "0"], "--limit"),
        (["sft", "--output", "prompts.jsonl"], "--output: prompts.jsonl is also an input and would be overwritten"),
        (["sft", "--overlap", "0"], "--overlap: found 0"),
        (["sft", "--overlap", "2"], "--overlap: a file of tasks does not say how many people label each"),
        (["sft", "ppo", "--kind", "evaluation", "--completions", "4"], "--completions: in an evaluation every policy"),
        (["sft", "--pool", "5"], "--pool: --select random uses no pool"),
        (["sft", "--pool", "5", "--select", "disagreement", "--ensemble", "a", "b"], "--pool: without a limit"),
        (["sft", "--database", "."], "--database: "),
        (["sft", "--output", "."], "--output: '.' is a folder"),
        (["sft", "--output="], "--output: '' is a folder"),
        (["sfd"], "sfd"),
        (["sft", "--use_cases", "poetry"], "no prompt has the use case"),
    ],
)
def test_wrong_words_are_told(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert collect(*words, "--prompts", "prompts.jsonl") == 2
    assert told in capsys.readouterr().err
    assert not list(folder.glob("tasks*.jsonl"))
