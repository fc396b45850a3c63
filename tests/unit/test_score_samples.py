"""Scoring samples during SFT: the number logged, and that looking changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from stage_runs import COMPARISONS, Files, Shortness, run_stage
from torch import nn
from transformers import PreTrainedTokenizerBase

from instructlit.callbacks import SampleTable, ScoreSamples
from instructlit.errors import UserError
from instructlit.rollout import CachedEngine, Sampling


@pytest.fixture
def files(
    tiny_llama_dir: Path, demonstrations_file: Path, prompts_file: Path, text_file: Path, jsonl: Callable[..., Path]
) -> Files:
    return Files(tiny_llama_dir, demonstrations_file, jsonl("comparisons", COMPARISONS), prompts_file, text_file)


def pretrain(files: Files, out: Path, callbacks: list[pl.Callback]) -> tuple[pl.Trainer, pl.LightningModule]:
    """A stage without a callback of its own."""
    return run_stage("pretrain", files, out, False, callbacks)


def test_the_mean_over_the_first_prompts_of_the_file(files: Files, tmp_path: Path) -> None:
    scoring = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=4), limit=5, batch_size=2)
    trainer, module = pretrain(files, tmp_path, [scoring, SampleTable(str(tmp_path), name="rows")])
    rows = module.validation_rows
    assert [row["prompt"] for row in rows] == ["Q0? ", "Q1?? ", "Q2??? ", "Q3? ", "Q4?? "]  # type: ignore[union-attr]
    expected = sum(1 - len(row["response"]) / 10 for row in rows) / 5  # type: ignore[union-attr]
    assert float(trainer.callback_metrics["pretrain/val/score"]) == pytest.approx(expected)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 * 5  # the look before training and one after


def test_it_samples_in_the_precision_of_the_run(files: Files, tmp_path: Path) -> None:
    """Outside of steps Lightning leaves autocast off, and a GPU would take the time of float32."""
    found = []

    class Looking(CachedEngine):
        def generate(self, *args: Any, **options: Any) -> Any:
            found.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().generate(*args, **options)

    scoring = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=2), limit=1, engine=Looking())
    run_stage("pretrain", files, tmp_path, False, [scoring], precision="bf16-mixed")
    assert set(found) == {torch.bfloat16}


class Synced(CachedEngine):
    """Counts how often it was told to take the weights over."""

    synced = 0

    def sync(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.synced += 1


def test_an_engine_takes_the_weights_over_before_every_look(files: Files, tmp_path: Path) -> None:
    engine = Synced()
    scoring = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=4), limit=5, engine=engine)
    pretrain(files, tmp_path, [scoring])
    assert engine.synced == 2  # before training, and after


def test_training_is_the_same_with_and_without(files: Files, tmp_path: Path) -> None:
    scoring = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=4), limit=5)
    after = []
    for callbacks in ([], [scoring]):
        _, module = pretrain(files, tmp_path, callbacks)  # type: ignore[arg-type]
        after.append((module.state_dict(), torch.rand(3)))
    assert torch.equal(after[0][1], after[1][1])
    for name, weight in after[0][0].items():
        assert torch.equal(weight, after[1][0][name])


def test_every_look_draws_the_same_random_numbers(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=4), limit=5)
    trainer, module = pretrain(files, tmp_path, [scoring])
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    looks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scoring.on_validation_epoch_end(trainer, module)
        looks.append(module.validation_rows)
    assert looks[0] == looks[1]


def test_a_file_whose_prompts_are_all_too_long(files: Files, tmp_path: Path) -> None:
    scoring = ScoreSamples(Shortness(), str(files.prompts), max_prompt_length=2)
    with pytest.raises(UserError, match="no prompt has at most 2 tokens"):
        pretrain(files, tmp_path, [scoring])
