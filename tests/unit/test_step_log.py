"""A step's figures reach loggers and callbacks as Lightning's own `log_dict` brings them, by the short way too."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from stage_helpers import FixedBatches, Recorder, sft_module, token_batch, trainer

from instructlit.callbacks import CSVLogger
from instructlit.modules import base

BATCHES = [token_batch([("Say a: ", "b"), ("Say c: ", text)]) for text in ("d", "ef", "ghi", "j")]


class Beside(pl.Callback):
    """Logs by `log_dict` too: numbers, one of them only now and then, and one with an option."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        figures = {"perf/number": float(trainer.global_step), "perf/whole": trainer.global_step}
        pl_module.log_dict(figures | ({"perf/odd": 1.5} if batch_idx % 2 else {}))
        pl_module.log_dict({"perf/mean": float(batch_idx)}, on_step=False, on_epoch=True)


def run(root: Path, model: Path, tokenizer: Any, every: int) -> tuple[list[dict[str, str]], list[dict[str, float]]]:
    """Rows of metrics.csv, and what callbacks saw after each batch."""
    torch.manual_seed(3)
    recorder, logger = Recorder(), CSVLogger(str(root), name="", version="")
    data = FixedBatches(tokenizer, BATCHES, validation=BATCHES[:2])
    options: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": every, "val_check_interval": 2}
    fit = trainer(root, logger=logger, callbacks=[Beside(), recorder], **options)
    fit.fit(sft_module(model), data)
    with (root / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), recorder.rows


@pytest.mark.parametrize("every", [1, 3])
def test_the_short_way_logs_the_same(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    log_again, by_lightning = base.log_again, []

    def counted(module: Any, figures: Any) -> bool:
        done = log_again(module, figures)
        by_lightning.append(not done)
        return done

    monkeypatch.setattr(base, "log_again", counted)
    short = run(tmp_path / "short", tiny_llama_dir, char_tokenizer, every)
    # training step and callback: at the first step of each epoch, and for a metric that is new there
    assert by_lightning.count(True) == 2 * 3
    assert by_lightning.count(False) == 2 * 2 * len(BATCHES) - 2 * 3
    monkeypatch.setattr(base, "log_again", lambda *_: False)
    assert short == run(tmp_path / "long", tiny_llama_dir, char_tokenizer, every)
