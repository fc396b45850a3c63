"""A run that was stopped goes on by the same command, as if it had not been; or it is said why it cannot."""

import csv
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

from instructlit.checkpoints import checkpoints, claim, finished
from instructlit.cli import main

Call = Callable[..., tuple[int, str]]
Outcome = tuple[bytes, list[dict[str, str]]]
"""Weights and metrics, bit for bit."""


class Trouble(pl.Callback):
    """Something happens at the start of a batch."""

    def __init__(self, kind: str, at: int):
        self.kind, self.at = kind, at

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            trainer.should_stop = self.kind == "early stop and sigterm"
            if "sigterm" in self.kind:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise RuntimeError("power cut")


def recipe(model: Path, tokenizer: Path, train: Path) -> dict[str, Any]:
    """Ten batches of SFT with dropout, five an epoch, a validation after every third."""
    return {
        "model": {
            "class_path": "instructlit.modules.SFTModule",
            "init_args": {"policy": {"path": str(model), "dropout": 0.1}},
        },
        "data": {
            "class_path": "instructlit.data.DemonstrationData",
            "init_args": {
                "tokenizer": str(tokenizer),
                "train": str(train),
                "batch_size": 3,
                "max_length": 128,
                "validation_fraction": 0.2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 10,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "instructlit.callbacks.CSVLogger", "init_args": {"save_dir": "runs"}},
            "callbacks": [
                {
                    "class_path": "instructlit.callbacks.ResumeCheckpoint",
                    "init_args": {"dirpath": "resume", "every_n_batches": 2},
                },
                {"class_path": "instructlit.callbacks.ExportHuggingFace", "init_args": {"dirpath": "model"}},
            ],
        },
    }


@pytest.fixture(scope="module")
def write_recipe(tiny_gpt2_dir: Path, char_tokenizer_dir: Path, demonstrations_file: Path) -> Callable[[Path], None]:
    """Puts `recipe.yaml` and its data into a folder."""

    def write(folder: Path) -> None:
        train = folder / "train.jsonl"
        train.write_text("".join(demonstrations_file.read_text().splitlines(keepends=True)[:20]))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(tiny_gpt2_dir, char_tokenizer_dir, train)))

    return write


@pytest.fixture(scope="module")
def unbroken(write_recipe: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_recipe(folder)
    with chdir(folder):
        assert main(["fit", "--config", "recipe.yaml"]) == 0
    found = outcome(folder)
    assert len(found[1]) == 13, "ten batches and three validations"
    return found


@pytest.fixture
def command(
    write_recipe: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Call:
    """`fit` in a folder; `trouble` happens on the way. Returns the status and what was said on stderr."""
    write_recipe(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])

    def run(folder: str, *words: str, trouble: tuple[str, int] | None = None) -> tuple[int, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        overlay = []
        if trouble is not None:
            kind, at = trouble
            extra = {"class_path": "test_resume_command.Trouble", "init_args": {"kind": kind, "at": at}}
            Path("trouble.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [extra]}}))
            overlay = ["--config", "trouble.yaml"]
        capfd.readouterr()
        status = main(["fit", "--config", "../recipe.yaml", *overlay, *words])
        return status, capfd.readouterr().err

    return run


def outcome(folder: Path) -> Outcome:
    (log,) = (folder / "runs").rglob("metrics.csv")
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return (folder / "model" / "model.safetensors").read_bytes(), [{k: v for k, v in row.items() if v} for row in rows]


# batch 4 is between two validations, 6 was followed by one, 5 ends an epoch
@pytest.mark.parametrize("at", [5, 6, 7, 8])
def test_a_stopped_run_ends_where_an_unbroken_one_does(
    command: Call, unbroken: Outcome, tmp_path: Path, at: int
) -> None:
    assert command("stopped", trouble=("power cut", at))[0] == 1
    kept = at - at % 2
    assert checkpoints(tmp_path / "stopped" / "resume")[0].name == f"batch-{kept:08d}"
    status, said = command("stopped")
    assert (status, f"resuming after batch {kept}" in said) == (0, True)
    assert outcome(tmp_path / "stopped") == unbroken
    status, said = command("stopped")
    assert (status, "this run is already finished" in said) == (0, True)


def test_sigterm_saves_and_ends_with_its_own_status(command: Call, unbroken: Outcome, tmp_path: Path) -> None:
    assert command("stopped", trouble=("sigterm", 6))[0] == 75
    assert checkpoints(tmp_path / "stopped" / "resume")[0].name == "batch-00000007"
    assert command("stopped")[0] == 0
    assert outcome(tmp_path / "stopped") == unbroken


def test_an_early_stop_that_waits_for_min_steps_hinders_no_checkpoint_and_is_remembered(
    command: Call, tmp_path: Path
) -> None:
    assert command("run", "--trainer.min_steps", "6", trouble=("early stop and sigterm", 3))[0] == 75
    assert checkpoints(tmp_path / "run" / "resume")[0].name == "batch-00000004"
    assert command("run", "--trainer.min_steps", "6")[0] == 0
    ended = finished(tmp_path / "run" / "resume")
    assert ended is not None
    assert ended.batch == 6


def test_other_settings_or_data_are_refused_or_said(command: Call, tmp_path: Path) -> None:
    command("run", trouble=("power cut", 5))
    status, said = command("run", "--data.init_args.batch_size", "5", "--seed_everything", "3")
    assert status == 2
    assert "data.init_args.batch_size: was 3, is 5" in said
    assert "seed_everything: was 0, is 3" in said
    status, said = command("run", "--trainer.log_every_n_steps", "2", "--data.init_args.num_workers", "1")
    assert status == 0, "what changes nothing may change"

    command("other", trouble=("power cut", 5))
    train = tmp_path / "train.jsonl"
    rows = train.read_text()
    train.write_text(rows.replace("completion", "completion", 1).rstrip("\n").removesuffix('"}') + ' more"}\n')
    status, said = command("other")
    assert status == 2
    assert "the data differs from what the run began with: train files was" in said
    status, said = command("other", "--resume", "anyway", "--model.init_args.gradient_clip_norm", "0.5")
    assert status == 0
    assert "not resumed exactly: model.init_args.gradient_clip_norm: was 1.0, is 0.5" in said
    assert "resuming after batch 4" in said


def test_starting_anew_keeps_what_was_there(command: Call, unbroken: Outcome, tmp_path: Path) -> None:
    command("run", trouble=("power cut", 5))
    status, said = command("run", "--resume", "never")
    assert status == 0
    assert "kept in resume-earlier-1" in said
    assert len(checkpoints(tmp_path / "run" / "resume-earlier-1")) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == unbroken[0]


def test_a_run_that_ended_is_left_alone_until_something_else_is_asked_of_it(command: Call, tmp_path: Path) -> None:
    model = tmp_path / "run" / "model" / "model.safetensors"
    one = ("--trainer.max_steps", "1")  # ends before its first checkpoint
    command("run", *one)
    written = model.stat().st_mtime_ns
    status, said = command("run", *one)
    assert (status, "this run is already finished" in said) == (0, True)
    status, said = command("run")
    assert status == 2
    assert "is finished, and since then this has changed:\n  trainer.max_steps: was 1, is 10" in said
    assert model.stat().st_mtime_ns == written

    status, said = command("run", "--resume", "anyway", trouble=("power cut", 5))
    assert (status, "left no checkpoint in resume: starting from scratch" in said) == (1, True)
    status, said = command("run")
    assert (status, "resuming after batch 4" in said) == (0, True), "the end of the short run is not this one's"
    status, said = command("run", "--resume", "anyway", "--trainer.max_steps", "11")
    assert (status, "resuming after batch 8" in said) == (0, True)
    assert "not resumed exactly: trainer.max_steps: was 10, is 11" in said


def test_going_back_makes_the_run_unfinished_and_puts_aside_what_came_after(command: Call, tmp_path: Path) -> None:
    command("run")
    earlier = ("--ckpt_path", "resume/batch-00000006")
    status, said = command("run", *earlier, trouble=("power cut", 7))
    assert (status, "after batch 6 is kept in resume-earlier-1" in said) == (1, True)
    assert [path.name for path in checkpoints(tmp_path / "run" / "resume")] == ["batch-00000006"]
    status, said = command("run")
    assert (status, "resuming after batch 6" in said) == (0, True)


def test_a_second_run_in_the_folder_is_refused(command: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("run", trouble=("power cut", 7))
    folder = tmp_path / "run" / "resume"
    before = checkpoints(folder)
    other = claim(folder)
    with monkeypatch.context() as hurried:
        hurried.setattr("instructlit.checkpoints.LOCK_SECONDS", 0.0)
        status, said = command("run", "--resume", "never")
    assert (status, "resume: another run is using it: process" in said) == (2, True)
    assert checkpoints(folder) == before
    other.release()
    status, said = command("run")
    assert (status, "resuming after batch" in said) == (0, True)


def test_a_rehearsal_writes_nothing_over_what_a_run_has_written(command: Call, tmp_path: Path) -> None:
    command("run", "--trainer.max_steps", "2")
    table = Path("samples/sft_validation.jsonl")
    table.parent.mkdir()
    table.write_text('{"iteration": 0, "prompt": "p", "response": "r"}\n')

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if "runs" not in path.parts}

    written = files()
    samples = {"class_path": "instructlit.callbacks.SampleTable", "init_args": {"dirpath": "samples"}}
    words = ("--trainer.fast_dev_run", "true", "--resume", "never", "--trainer.callbacks+", json.dumps(samples))
    status, said = command("run", *words)
    assert (status, "fast_dev_run: no model, checkpoint or sample file is written" in said) == (0, True)
    assert files() == written


def test_a_damaged_checkpoint_is_named_and_skipped(command: Call, unbroken: Outcome, tmp_path: Path) -> None:
    command("run", trouble=("power cut", 7))
    newest, older = checkpoints(tmp_path / "run" / "resume")
    state = newest / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-1000])
    status, said = command("run")
    assert status == 0
    assert f"resume/{newest.name} is skipped: state.ckpt has" in said
    assert f"resuming after batch 4, from resume/{older.name}" in said
    assert outcome(tmp_path / "run") == unbroken


def test_a_full_disk_leaves_the_last_good_checkpoint(
    command: Call, unbroken: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = pl.Trainer.save_checkpoint

    def full(trainer: pl.Trainer, path: Path, **options: Any) -> None:
        if trainer.global_step == 4:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(trainer, path, **options)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    status, said = command("run")
    assert status == 2
    assert "the checkpoint after batch 4 could not be written: No space left on device" in said
    assert "it resumes from resume/batch-00000002" in said
    assert [path.name for path in (tmp_path / "run" / "resume").glob("*batch*")] == ["batch-00000002"]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    assert command("run")[0] == 0
    assert outcome(tmp_path / "run") == unbroken
