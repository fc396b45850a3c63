"""The loop with a judge in the place of people, two rounds to the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_helpers import rows, run_stages_here, write_loop
from transformers import PreTrainedTokenizerFast

from instructlit.cli import main
from instructlit.labels import read_labels
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.lineage import make_record, parent
from instructlit.tools.scoring import Scorer


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A working directory with a reward model in `models/gold`, whose stages run in this process."""
    monkeypatch.chdir(tmp_path)
    run_stages_here(monkeypatch)
    gold = load_scalar_model(Backbone(str(tiny_llama_dir)))
    for weight in gold.head.parameters():
        torch.nn.init.normal_(weight)
    export_folder(
        gold,
        char_tokenizer,
        tmp_path / "models" / "gold",
        make_record("reward", parents=[parent(str(tiny_llama_dir), "init")]),
    )
    return tmp_path


def test_two_rounds_of_a_reward_model_as_judge(
    folder: Path,
    tiny_llama_dir: Path,
    prompts_file: Path,
    demonstrations_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_loop(folder, tiny_llama_dir, prompts_file, demonstrations_file, label="judge reward:models/gold")
    assert main(["iterate", "--config", "loop.yaml", "--output", "run"]) == 0
    told = capsys.readouterr().out
    home = folder / "run" / "rounds"
    results: list[dict[str, Any]] = [json.loads((home / str(n) / "round.json").read_text()) for n in (1, 2)]
    assert [result["labels"] for result in results] == [12, 12]
    assert "accuracy_before" not in results[0]
    assert 0 <= results[1]["accuracy_before_low"] <= results[1]["accuracy_before"] <= 1
    assert all(result["contest_tasks"] == 6 for result in results)
    assert "round 2: 12 comparisons" in told
    assert (folder / "run" / "report.html").read_text().count("<tr>") == 3, "a head and two rounds"

    judge = Scorer("models/gold", torch.device("cpu"))
    for file in ("1/labels.jsonl", "1/contest/labels.jsonl", "2/labels.jsonl", "2/contest/labels.jsonl"):
        labels = read_labels(home / file)
        assert {label.labeler for label in labels} == {"models/gold"}, "the name that the config has"
        right, pairs = judge.ordered([vars(label) for label in labels])
        assert sum(right) == sum(pairs) > 0
    trained = json.loads((home / "2" / "models" / "reward" / "instructlit.json").read_text())
    assert {file["path"] for file in trained["data"]} > {"../1/data/comparisons.jsonl", "data/comparisons.jsonl"}
    learnt = [row for n in (1, 2) for row in rows(home / str(n) / "data" / "comparisons.jsonl")]
    assert {row["labeler"] for row in learnt} == {"models/gold"}

    assert main(["lineage", "run"]) == 0, "everything is what it was made from"
    assert main(["iterate", "--config", "loop.yaml", "--output", "run"]) == 0
    assert "$ instructlit" not in capsys.readouterr().out, "what is finished is not repeated"
