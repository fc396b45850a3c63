"""Callbacks on a module of a few weights: progress, samples, alerts, throughput, export."""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from stage_helpers import CountVowels
from torch import Tensor, nn
from torch.utils.data import DataLoader

from instructlit.callbacks import (
    ExportHuggingFace,
    InvariantAlerts,
    ResumeCheckpoint,
    SampleTable,
    ScoreSamples,
    StageProgress,
    Throughput,
    WandbHistograms,
)
from instructlit.callbacks.common import run_seed
from instructlit.callbacks.progress import _clock
from instructlit.callbacks.same_run import THREADS, differences
from instructlit.errors import UserError
from instructlit.modules.invariants import InvariantError
from instructlit.types import Rollout, TokenBatch


class Toy(pl.LightningModule):
    """Adds 1 to its weight at each step and leaves validation rows that say so."""

    stage = "toy"

    def __init__(self, figures: dict[str, list[float]] | None = None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(()))
        self.figures = figures or {}
        self.validation_rows: list[dict[str, Any]] = []
        self.exported: list[float] = []

    def progress(self) -> tuple[int, int, str]:
        return self.trainer.global_step, 6, "step"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.weight.grad = -torch.ones(())
        optimizer.step()  # type: ignore[union-attr]
        step = self.trainer.global_step
        self.log("toy/train/loss", 1.0 / step)
        for name, values in self.figures.items():
            self.log(name, values[step - 1])

    def on_validation_start(self) -> None:
        self.validation_rows = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("toy/val/loss", (self.weight - 4).square())  # best at step 4
        for prompt in ("p", "q", "p"):
            self.validation_rows.append(
                {
                    "prompt": prompt,
                    "response": f"{prompt}{self.weight.item():.0f}",
                    "score": self.weight.item(),
                    "kl": 0.0,
                }
            )

    def export(self, path: str, record: dict[str, Any]) -> list[Path]:
        self.exported.append(self.weight.item())
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "instructlit.json").write_text(json.dumps(record))
        return [Path(path)]


def batches(count: int = 6) -> DataLoader[Any]:
    return DataLoader(torch.arange(count))  # type: ignore[arg-type]


def fit(tmp_path: Path, module: pl.LightningModule, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"max_steps": 6, "val_check_interval": 2, "num_sanity_val_steps": 0} | options
    resume = settings.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        log_every_n_steps=1,
        **({"enable_progress_bar": False} if not any(isinstance(c, StageProgress) for c in callbacks) else {}),
        **settings,
    )
    trainer.fit(module, batches(), batches(1), ckpt_path=resume)
    return trainer


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_names_stage_step_and_metrics_where_output_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Toy(), [StageProgress(seconds=0.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy")]
    assert re.fullmatch(r"toy  step 1 of 6  \d+:\d\d left  loss 1", lines[1])
    assert any("validating 1 of 1" in line for line in lines)
    assert re.fullmatch(r"toy  step 6 of 6  loss 0.167  val/loss 4", lines[-1])


def test_progress_keeps_to_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Toy(), [StageProgress(seconds=3600.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy")]
    assert len(lines) == 2  # the first and the last


def test_progress_says_nothing_when_disabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = StageProgress(seconds=0.0)
    bar.disable()
    fit(tmp_path, Toy(), [bar])
    assert "toy" not in capsys.readouterr().out


def test_on_a_terminal_the_line_is_drawn_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    bar = StageProgress(metrics=["toy/val/loss"])
    module = Toy()
    fit(tmp_path, module, [bar])
    drawn = capsys.readouterr().out
    assert "step 6 of 6  val/loss 4" in drawn
    assert "\n" not in drawn.strip().rpartition("step 6 of 6")[0]
    assert bar._bar is None


def test_time_left_goes_by_the_pace_of_this_process() -> None:
    bar = StageProgress()
    bar._began, bar._done_at_start = 0.0, 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instructlit.callbacks.progress.time.monotonic", lambda: 30.0)
        assert bar.time_left(110, 200) == "4:30 left"  # 3 seconds a step, 90 to go; not 30 s / 110 * 90
        assert bar.time_left(100, 200) == ""
        assert bar.time_left(200, 200) == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (3725, "1:02:05")])
def test_clock(seconds: float, shown: str) -> None:
    assert _clock(seconds) == shown


# -- samples -----------------------------------------------------------------------------------------------------------


def test_samples_of_every_validation_with_the_look_before_training(tmp_path: Path) -> None:
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path / "samples"))], num_sanity_val_steps=-1)
    rows = rows_of(tmp_path / "samples" / "toy_validation.jsonl")
    assert [row["iteration"] for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert rows[3] == {"iteration": 2, "prompt": "p", "response": "p2", "score": 2.0, "kl": 0.0}


class LateRestore(SingleDeviceStrategy):
    """Reads a checkpoint as strategies that shard do: after `on_fit_start`."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, LateRestore])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_resumed_run_writes_each_iteration_once(
    step: int, strategy: type[SingleDeviceStrategy], tmp_path: Path
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    table = SampleTable(str(tmp_path / "samples"), name="mine")
    fit(tmp_path, Toy(), [table, checkpoint])
    whole = (tmp_path / "samples" / "mine.jsonl").read_text()
    assert len(whole.splitlines()) == 9
    again = SampleTable(str(tmp_path / "samples"), name="mine")
    fit(tmp_path, Toy(), [again], ckpt_path=tmp_path / f"step={step}.ckpt", strategy=strategy("cpu"))
    assert (tmp_path / "samples" / "mine.jsonl").read_text() == whole


def test_what_lies_after_the_checkpoint_is_dropped_when_a_run_resumes(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path)), checkpoint])
    options = {"max_steps": 4, "val_check_interval": 6}  # not a validation more
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], ckpt_path=tmp_path / "step=3.ckpt", **options)
    assert {row["iteration"] for row in rows_of(tmp_path / "toy_validation.jsonl")} == {2}


def test_an_iteration_that_is_validated_again_replaces_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for response in ("old", "new"):
        SampleTable()._write(file, [{"iteration": 4, "prompt": "p", "response": response}], 4)
    assert [row["response"] for row in rows_of(file)] == ["new"]


def test_the_samples_of_before_are_not_read_at_every_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("instructlit.callbacks.sample_table._lines", lambda path: read.append(path) or [])
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], max_steps=4)
    twice = len(read)
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], max_steps=8)
    assert len(read) == 2 * twice
    assert {row["iteration"] for row in rows_of(tmp_path / "toy_validation.jsonl")} == {2, 4, 6, 8}


def test_what_ends_a_line_elsewhere_ends_none_here(tmp_path: Path) -> None:
    rows = [{"iteration": 0, "prompt": "p", "response": odd} for odd in ("a\u2028b", "a\u0085b", "a\r\x0bb", "c")]
    for iteration in (0, 1):
        SampleTable()._write(tmp_path / "rows.jsonl", [row | {"iteration": iteration} for row in rows], iteration)
    written = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["response"] for line in written[:-1]] == 2 * [row["response"] for row in rows]


def test_validation_by_itself_leaves_the_file_of_the_training_run(tmp_path: Path) -> None:
    table, module = SampleTable(str(tmp_path)), Toy()
    fit(tmp_path, module, [table])
    written = (tmp_path / "toy_validation.jsonl").read_text()
    options: dict[str, Any] = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    pl.Trainer(**options, callbacks=[table]).validate(module, batches(1), verbose=False)
    assert (tmp_path / "toy_validation.jsonl").read_text() == written


@pytest.mark.parametrize("name", ["rows", "file/rows"])
def test_a_file_in_the_way_of_the_folder_is_said_before_training(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    module = Toy()
    with pytest.raises(UserError, match=r"SampleTable.dirpath: .*rows\.jsonl cannot be written"):
        fit(tmp_path, module, [SampleTable(str(tmp_path / ("file" if name == "rows" else "")), name=name)])
    assert float(module.weight) == 0.0


def test_a_fresh_run_begins_its_file_anew_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], num_sanity_val_steps=1)
    earlier = (tmp_path / "toy_validation.jsonl").read_text()
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], max_steps=4)
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], max_steps=2)
    assert [row["iteration"] for row in rows_of(tmp_path / "toy_validation.jsonl")] == [2, 2, 2]
    assert (tmp_path / "toy_validation-earlier-1.jsonl").read_text() == earlier
    assert {row["iteration"] for row in rows_of(tmp_path / "toy_validation-earlier-2.jsonl")} == {2, 4}


def test_a_line_that_was_cut_off_is_not_kept(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path)), checkpoint], max_steps=3)
    file = tmp_path / "toy_validation.jsonl"
    with file.open("a") as stream:
        stream.write('{"iteration": 2, "pro')
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], ckpt_path=tmp_path / "step=3.ckpt")
    assert [row["iteration"] for row in rows_of(file)] == [2, 2, 2, 4, 4, 4, 6, 6, 6]


def test_every_second_validation_and_rows_on_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path), every_n_validations=2, console_rows=1)])
    assert {row["iteration"] for row in rows_of(tmp_path / "toy_validation.jsonl")} == {4}
    assert "[4] score 4.00  'p' -> 'p4'" in capsys.readouterr().out


def test_a_table_that_stays_empty_says_so_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Silent(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("toy/val/loss", self.weight)

    fit(tmp_path, Silent(), [SampleTable(str(tmp_path))])
    told = [str(w.message) for w in recwarn if "SampleTable" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith("SampleTable: Silent left no samples in this validation")


@pytest.mark.parametrize("callback", [SampleTable, lambda: ScoreSamples(CountVowels(), "prompts.jsonl")])
def test_a_callback_that_waits_for_validations_says_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: Callable[[], pl.Callback]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="works at validations, and this run has none"):
        fit(tmp_path, Toy(), [callback()], limit_val_batches=0)


def test_a_first_epoch_without_a_validation_is_no_run_without_one(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"max_steps": 12, "val_check_interval": 1.0, "check_val_every_n_epoch": 2}
    fit(tmp_path, Toy(), [SampleTable(str(tmp_path))], **options)
    assert {row["iteration"] for row in rows_of(tmp_path / "toy_validation.jsonl")} == {12}
    assert not [w for w in recwarn if "works at validations" in str(w.message)]


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_a_metric_out_of_bounds_warns_once_until_it_was_back(tmp_path: Path) -> None:
    kl = [1.0, 60.0, 70.0, 1.0, 80.0, 1.0]
    alerts = InvariantAlerts(wait_seconds=0.0)
    with pytest.warns(UserWarning, match="ppo/objective/kl") as caught:
        fit(tmp_path, Toy({"ppo/objective/kl": kl}), [alerts])
    told = [str(w.message) for w in caught if "ppo/objective/kl" in str(w.message)]
    assert [t.split(".")[0] for t in told] == [
        "ppo/objective/kl is 60, above 50",
        "ppo/objective/kl is 80, above 50",
    ]
    assert alerts.outside == set()


def test_an_engine_that_drifts_from_the_trainer_warns(tmp_path: Path) -> None:
    """Checklist 35: by log-probs a tenth of a nat a token apart."""
    with pytest.warns(UserWarning, match="ppo/engine/gap is 0.2, above 0.1"):
        fit(tmp_path, Toy({"ppo/engine/gap": [0.05, 0.2]}), [InvariantAlerts()], max_steps=2)


def test_a_number_that_is_not_finite_warns_whatever_its_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="my/own is nan"):
        fit(tmp_path, Toy({"my/own": [1.0, math.nan]}), [InvariantAlerts()], max_steps=2)


def test_limits_can_be_lifted_and_added(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    limits: dict[str, list[float | None]] = {"ppo/objective/kl": [None, None], "toy/train/loss": [0.9, None]}
    fit(tmp_path, Toy({"ppo/objective/kl": [99.0, 99.0]}), [InvariantAlerts(limits)], max_steps=2)
    told = [str(w.message) for w in recwarn if "docs/metrics.md" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith("toy/train/loss is 0.5, below 0.9")


def test_a_limit_of_a_metric_that_is_not_logged_is_named_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    limits: dict[str, list[float | None]] = {
        "toy/train/los": [0.0, 1.0],
        "toy/val/loss": [None, 99.0],
        "x": [None, None],
    }
    fit(tmp_path, Toy(), [InvariantAlerts(limits)])
    told = [str(w.message) for w in recwarn if "InvariantAlerts" in str(w.message)]
    assert told == ["InvariantAlerts.limits: toy/train/los has not been logged so far; did you mean toy/train/loss?"]


def test_limits_need_two_values() -> None:
    with pytest.raises(UserError, match="two: \\[lowest, highest\\]"):
        InvariantAlerts({"a": [1.0]})


def test_a_failed_self_check_alerts_in_wandb_and_is_not_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    alerts: list[dict[str, Any]] = []
    run = SimpleNamespace(alert=lambda **given: alerts.append(given))
    monkeypatch.setattr("instructlit.callbacks.alerts.wandb_runs", lambda trainer: [run])

    class Fails(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise InvariantError("the ratio is 2", where="PPO")

    with pytest.raises(InvariantError):
        fit(tmp_path, Fails(), [InvariantAlerts()])
    assert alerts == [{"title": "PPO's self-check failed", "text": "PPO: the ratio is 2", "level": "ERROR"}]
    assert not [w for w in recwarn if "the ratio is 2" in str(w.message)]


# -- histograms --------------------------------------------------------------------------------------------------------


def test_every_rank_hands_over_its_share_of_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first alone has W&B, and what it gathered alone it would wait for."""
    handed: dict[int, list[float]] = {0: [], 1: []}
    logged: list[list[str]] = []
    given: dict[str, Any] = {field.name: torch.zeros(1, 1) for field in fields(Rollout)}
    given |= {"scores": torch.ones(1), "response_mask": torch.ones(1, 1, dtype=torch.bool)}
    name = "instructlit.callbacks.histograms"
    monkeypatch.setattr(f"{name}.logger_step", lambda trainer: 10)
    monkeypatch.setattr(f"{name}.wandb_loggers", lambda trainer: ["W&B"] if trainer.is_global_zero else [])
    monkeypatch.setattr(WandbHistograms, "_log", lambda *told: logged.append(list(told[-1])))
    for rank, own in handed.items():
        monkeypatch.setattr(f"{name}.gathered", lambda values, own=own: own.extend(values) or values)
        trainer, module = SimpleNamespace(is_global_zero=rank == 0), SimpleNamespace(last_rollout=Rollout(**given))
        WandbHistograms().on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    assert handed[0] == handed[1] == [1, 0, 1, 0, 0, 0]
    assert logged[0] == ["scores", "kl", "lengths", "advantages", "returns", "values"]


# -- throughput --------------------------------------------------------------------------------------------------------


def test_rates_are_sums_over_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(t) for t in (0, 1, 10, 13, 20, 24))  # batches of 1, 3 and 4 seconds, pauses between them
    monkeypatch.setattr("instructlit.callbacks.throughput.time.perf_counter", lambda: next(clock))

    def tokens(length: int) -> TokenBatch:
        mask = torch.arange(5)[None] < length
        return TokenBatch(torch.zeros(1, 5, dtype=torch.int64), mask, mask)

    module, seen = Toy(), []
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=3,
        callbacks=[Throughput(window=2), Record(seen)], default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([tokens(2), tokens(3), tokens(5)], batch_size=None))  # type: ignore[arg-type]
    assert [row["perf/tokens_per_second"] for row in seen] == pytest.approx([2 / 1, 5 / 4, 8 / 7])
    assert [row["perf/steps_per_second"] for row in seen] == pytest.approx([1, 2 / 4, 2 / 7])
    assert all(row["perf/peak_memory_gib"] > 0.01 for row in seen)
    assert "perf/episodes_per_second" not in seen[0]


class Record(pl.Callback):
    """Keeps what was logged by the end of each batch."""

    def __init__(self, seen: list[dict[str, float]]):
        self.seen = seen

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


# -- export ------------------------------------------------------------------------------------------------------------


def test_last_weights_with_a_record(tmp_path: Path) -> None:
    module = Toy()
    export = ExportHuggingFace(str(tmp_path / "model"))
    fit(tmp_path, module, [export])
    assert module.exported == [6.0]
    assert export.folders == [tmp_path / "model"]
    record = json.loads((tmp_path / "model" / "instructlit.json").read_text())
    assert record["stage"] == "toy"
    assert record["step"] == 6
    assert record["metrics"]["toy/val/loss"] == 4.0
    assert record["progress"] == {"done": 6, "unit": "step"}
    assert "torch" in record["versions"]


def test_best_weights_leave_the_module_as_training_did(tmp_path: Path) -> None:
    module = Toy()
    best = ModelCheckpoint(tmp_path, monitor="toy/val/loss", filename="{step}")
    fit(tmp_path, module, [ExportHuggingFace(str(tmp_path / "model"), which="best"), best])
    assert module.exported == [4.0]
    assert float(module.weight) == 6.0
    record = json.loads((tmp_path / "model" / "instructlit.json").read_text())
    assert record["checkpoint"]["value"] == 0.0
    assert record["checkpoint"]["monitor"] == "toy/val/loss"


def test_the_last_are_written_where_nothing_was_validated(tmp_path: Path) -> None:
    module = Toy()
    best = ModelCheckpoint(tmp_path, monitor="toy/val/loss", filename="{step}")
    with pytest.warns(UserWarning, match="toy/val/loss was never logged, so the last weights are written"):
        fit(tmp_path, module, [ExportHuggingFace(str(tmp_path / "model"), which="best"), best], max_steps=1)
    assert module.exported == [1.0]


def test_the_best_is_known_again_where_a_run_goes_on_in_a_moved_folder(tmp_path: Path) -> None:
    module = Toy()
    best: dict[str, Any] = {"filename": "{step}", "monitor": "toy/val/loss"}
    fit(tmp_path, module, [ModelCheckpoint(tmp_path / "run", **best), ResumeCheckpoint(str(tmp_path / "run"), 1)])
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    callbacks = [ModelCheckpoint(moved, **best), ResumeCheckpoint(str(moved), 1)]
    export = ExportHuggingFace(str(tmp_path / "model"), which="best")
    fit(tmp_path, module, [*callbacks, export], ckpt_path=moved / "batch-00000005" / "state.ckpt")
    assert module.exported == [4.0], "not that of step 6, the only validation since"


def test_best_without_a_monitor_is_refused_before_training(tmp_path: Path) -> None:
    module = Toy()
    with pytest.raises(UserError, match="ModelCheckpoint"):
        fit(tmp_path, module, [ExportHuggingFace(str(tmp_path / "m"), which="best"), ModelCheckpoint(tmp_path)])
    assert float(module.weight) == 0.0


def test_a_module_without_export_is_told_what_it_lacks(tmp_path: Path) -> None:
    class Bare(Toy):
        export = None  # type: ignore[assignment]

    with pytest.raises(UserError, match="export\\(path, record\\)"):
        fit(tmp_path, Bare(), [ExportHuggingFace(str(tmp_path / "m"))])


def test_an_interrupted_run_exports_nothing(tmp_path: Path) -> None:
    class Stops(Toy):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError("power cut")
            super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, Stops(), [ExportHuggingFace(str(tmp_path / "model"))])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("config", "seed"), [({"seed_everything": 7}, 7), ({"seed_everything": True}, None), ({}, None)]
)
def test_seed(config: dict[str, Any], seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run_seed(config) == seed


def test_a_module_can_print_beside_the_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = StageProgress()
    run = pl.Trainer(accelerator="cpu", logger=False, callbacks=[bar], default_root_dir=tmp_path)
    module = pl.LightningModule()
    module.trainer = run
    module.print("said")
    assert bar.is_enabled
    assert "said" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("processes", "behind", "told"),
    [
        (1, None, "batch 7 could not be written: Connection closed by peer"),
        (2, OSError(28, "No space left on device"), "batch 7 could not be written: No space left on device"),
        (2, None, None),
    ],
)
def test_a_process_that_is_lost_while_a_checkpoint_is_saved_is_no_full_disk(
    tmp_path: Path, processes: int, behind: OSError | None, told: str | None
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Connection closed by peer") from behind

    waiting = SimpleNamespace(barrier=lambda _: None)
    run: Any = SimpleNamespace(world_size=processes, is_global_zero=True, strategy=waiting, save_checkpoint=broken)
    saver = ResumeCheckpoint(str(tmp_path))
    module = pl.LightningModule()
    with pytest.raises(UserError if told else RuntimeError, match=told or "Connection closed"):
        saver._save(run, module, 7)


def test_threads_that_one_start_does_not_tell_are_no_difference() -> None:
    """They are told of one process on a CPU alone; that there are more, or another device, says it all."""
    one, two = {"number of processes": 1, THREADS: 4}, {"number of processes": 2}
    assert differences(one, two) == ["number of processes: was 1, is 2"]
    assert differences(two, one) == ["number of processes: was 2, is 1"]
    assert differences(one, one | {THREADS: 2}) == [f"{THREADS}: was 4, is 2"]


def test_an_extra_installed_since_is_no_difference() -> None:
    without = {"version of torch": "2.13.0"}
    with_it = without | {"version of bitsandbytes": "0.50.2"}
    assert differences(without, with_it) == []
    assert differences(with_it, without) == []
    other = with_it | {"version of bitsandbytes": "0.51.0"}
    assert differences(with_it, other) == ["version of bitsandbytes: was 0.50.2, is 0.51.0"]
