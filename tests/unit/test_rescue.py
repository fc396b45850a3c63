"""What is kept when a run fails between two steps: a checkpoint that goes on, and a word about it in the message."""

import errno
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from stage_helpers import FixedBatches, sft_module, token_batch, trainer

from instructlit.cli.errors import report
from instructlit.errors import UserError

BATCHES = [token_batch([("Say a: ", "b"), ("Say c: ", text)]) for text in ("d", "ef", "ghi", "j")]


class Breaks(pl.Callback):
    """Something else than the model fails after the second step."""

    def __init__(self, error: BaseException):
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise self.error


def broken(root: Path, model: Path, tokenizer: Any, *callbacks: Any, **options: Any) -> tuple[Any, BaseException]:
    module = sft_module(model)
    run = trainer(root, callbacks=list(callbacks), enable_checkpointing=True, **options)
    with pytest.raises(BaseException) as caught:
        run.fit(module, datamodule=FixedBatches(tokenizer, BATCHES, validation=BATCHES[:1]))
    return module, caught.value


def test_going_on_from_it_is_going_on_behind_the_batch(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)
    breaks = Breaks(OSError(errno.ENOSPC, "No space left on device", "somewhere"))
    _, error = broken(tmp_path, tiny_llama_dir, char_tokenizer, checkpoints, breaks)
    kept = torch.load(tmp_path / "ckpt" / "failed.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert "all 2 optimiser steps" in "".join(error.__notes__)
    straight = sft_module(tiny_llama_dir)
    trainer(tmp_path, max_steps=2).fit(straight, datamodule=FixedBatches(char_tokenizer, BATCHES))
    own = straight.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in kept["state_dict"].items())


def test_a_metric_that_nobody_logs_does_not_cost_what_was_learnt(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    """Lightning finds out when it is to save for the first time, which may be after hours."""
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", monitor="sft/val/los")
    _, error = broken(tmp_path, tiny_llama_dir, char_tokenizer, checkpoints)
    assert "sft/val/los" in str(error)
    kept = torch.load(tmp_path / "ckpt" / "failed.ckpt", weights_only=True)
    assert kept["global_step"] == 4


def test_nor_does_one_that_early_stopping_waits_for(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, stops = ModelCheckpoint(tmp_path / "ckpt"), EarlyStopping("sft/val/los")
    _, error = broken(tmp_path, tiny_llama_dir, char_tokenizer, checkpoints, stops)
    assert torch.load(tmp_path / "ckpt" / "failed.ckpt", weights_only=True)["global_step"] == 4
    capsys.readouterr()
    assert report(error) == 2
    said = capsys.readouterr().err
    assert said.startswith("instructlit: Early stopping conditioned on metric `sft/val/los` which is not available.")
    assert "Traceback" not in said


def test_the_message_says_it_and_one_error_is_one_message(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)
    _, error = broken(tmp_path, tiny_llama_dir, char_tokenizer, checkpoints, Breaks(UserError("it broke", where="x")))
    capsys.readouterr()
    assert report(error) == 2
    said = capsys.readouterr().err
    assert said.startswith("instructlit: x: it broke\n  saved: all 2 optimiser steps are in")
    assert "Traceback" not in said


def test_what_may_come_in_the_middle_of_a_step_rescues_nothing(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    breaks = Breaks(RuntimeError("a fault of the program"))
    broken(tmp_path, tiny_llama_dir, char_tokenizer, ModelCheckpoint(tmp_path / "ckpt", save_top_k=0), breaks)
    assert not (tmp_path / "ckpt" / "failed.ckpt").exists()
