"""The CSV logger: what a continued run keeps, and what it logs anew."""

import csv
import json
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from stage_helpers import FixedBatches, sft_module, token_batch, trainer
from transformers import PreTrainedTokenizerFast

from instructlit.callbacks import CSVLogger
from instructlit.callbacks.same_run import identities, take_up
from instructlit.errors import UserError


def logger(folder: Path) -> CSVLogger:
    return CSVLogger(str(folder), name="ppo", version="")


def log(folder: Path, steps: range, value: float, rewind: int | None = None) -> None:
    """What a run logs between its start and its kill: no `finalize`."""
    own = logger(folder)
    assert own.experiment is not None  # Lightning asks for it before a checkpoint is read
    if rewind is not None:
        own.rewind(rewind)
    for step in steps:
        own.log_metrics({"loss": value + step}, step)
        own.save()


def rows(folder: Path) -> list[tuple[int, float]]:
    with (folder / "ppo" / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_a_continued_run_keeps_the_rows_before_its_checkpoint_and_logs_the_others_again(tmp_path: Path) -> None:
    log(tmp_path, range(5), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning would say that it deletes the earlier file
        log(tmp_path, range(3, 6), 100.0, rewind=3)
    assert rows(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 103.0), (4, 104.0), (5, 105.0)]
    assert sorted(path.name for path in (tmp_path / "ppo").iterdir()) == ["metrics.csv"]


def test_a_continued_run_that_has_nothing_more_to_log_keeps_its_rows(tmp_path: Path) -> None:
    log(tmp_path, range(5), 0.0)
    log(tmp_path, range(0), 0.0, rewind=4)
    assert rows(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_run_that_begins_anew_puts_the_file_aside(tmp_path: Path) -> None:
    for value in (0.0, 100.0, 200.0):
        log(tmp_path, range(2), value)
    assert rows(tmp_path) == [(0, 200.0), (1, 201.0)]
    kept = [(tmp_path / "ppo" / f"metrics-earlier-{n}.csv").read_text().split() for n in (1, 2)]
    assert kept == [["loss,step", "0.0,0", "1.0,1"], ["loss,step", "100.0,0", "101.0,1"]]


def test_a_logger_goes_on_in_the_run_of_its_own_class_wherever_that_stood(tmp_path: Path) -> None:
    class Other(CSVLogger):
        pass

    kept = identities([logger(tmp_path), LightningCSVLogger(str(tmp_path)), Other(str(tmp_path), version="earlier")])
    now = [Other(str(tmp_path), version=f"{n}") for n in (1, 2)] + [CSVLogger(str(tmp_path), version="new")]
    take_up(now, json.loads(json.dumps(kept)))
    assert [one.version for one in now] == ["earlier", "2", ""]


def test_validating_a_checkpoint_takes_no_row_from_the_run_that_wrote_it(
    tiny_gpt2_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = FixedBatches(char_tokenizer, [token_batch([("ab", "c")])] * 3, [token_batch([("ab", "c")])])
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "callbacks": [saver], "log_every_n_steps": 1}
    trainer(tmp_path, logger=logger(tmp_path), **options).fit(sft_module(tiny_gpt2_dir), data)
    trained = (tmp_path / "ppo" / "metrics.csv").read_text()
    path = tmp_path / "step=1.ckpt"
    trainer(tmp_path, logger=logger(tmp_path)).validate(sft_module(tiny_gpt2_dir), data, path, weights_only=True)
    assert (tmp_path / "ppo" / "metrics.csv").read_text() == trained
    assert "sft/val/loss" in (tmp_path / "ppo" / "metrics-validate.csv").read_text()
    names = {file.name for file in (tmp_path / "ppo").iterdir()}
    assert names == {"metrics.csv", "metrics-validate.csv"}


def test_a_metric_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    log(tmp_path, range(2), 0.0)
    own = logger(tmp_path)
    own.rewind(2)
    own.log_metrics({"accuracy": 0.5}, 2)
    own.save()
    text = (tmp_path / "ppo" / "metrics.csv").read_text().splitlines()
    assert text == ["accuracy,loss,step", ",0.0,0", ",1.0,1", "0.5,,2"]


def test_a_kill_while_a_column_is_added_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, range(3), 0.0)
    own = logger(tmp_path)
    own.rewind(3)
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        own.log_metrics({"accuracy": 0.5}, 3)
    monkeypatch.undo()
    assert rows(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_rows_survive_a_kill_before_the_first_step(tmp_path: Path) -> None:
    log(tmp_path, range(4), 0.0)
    assert logger(tmp_path).experiment is not None  # begun, and killed before anything was logged
    log(tmp_path, range(4, 5), 100.0, rewind=4)
    assert rows(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 104.0)]


def test_a_line_that_was_cut_off_is_not_taken_for_a_row(tmp_path: Path) -> None:
    log(tmp_path, range(12), 0.0)
    path = tmp_path / "ppo" / "metrics.csv"
    path.write_text(path.read_text().removesuffix("1\n"))  # "11.0,11" has become "11.0,1"
    log(tmp_path, range(0), 0.0, rewind=12)
    assert rows(tmp_path) == [(step, float(step)) for step in range(11)]


@pytest.mark.parametrize("first", [0, 7])
def test_a_fresh_folder_gets_a_file(tmp_path: Path, first: int) -> None:
    log(tmp_path, range(first, first + 2), 0.0)
    assert rows(tmp_path) == [(first, float(first)), (first + 1, first + 1.0)]


def test_a_run_that_is_refused_over_its_data_leaves_no_folder(
    tiny_gpt2_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Refused(FixedBatches):
        def setup(self, stage: str) -> None:
            raise UserError("is missing")

    refused = Refused(char_tokenizer, [token_batch([("ab", "c")])])
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "runs", tmp_path / "there"):
        own = CSVLogger(str(folder), name="sft")
        with pytest.raises(UserError):
            trainer(tmp_path, logger=own).fit(sft_module(tiny_gpt2_dir), refused)
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []
