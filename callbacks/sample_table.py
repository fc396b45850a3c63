"""The model's responses to held-out prompts at every validation: a file, a W&B table, a few rows on the console."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from instructlit.callbacks.common import (
    gathered,
    logger_step,
    put_file_aside,
    rehearses,
    stage_name,
    tell_without_validation,
    wandb_loggers,
)
from instructlit.errors import UserError, require
from instructlit.files import json_lines, replacing
from instructlit.types import PromptText

COLUMNS = ("iteration", "episodes", "prompt", "before", "response", "score_before", "score", "kl", "length", "ended")


class SampleTable(pl.Callback):
    """Writes the rows a module leaves in `validation_rows` (prompt, response, score, KL, length, whether it ended).

    Rows go to `dirpath/name.jsonl`, one JSON object per response, with `iteration`, the optimiser steps taken by then.
    A resumed run drops what it will do again, so that each iteration appears once; a new run keeps the file under
    another name, such as `ppo_validation-earlier-1.jsonl`. Lightning's sanity check before training
    (`num_sanity_val_steps`, -1 for all prompts) is iteration 0. `validate` writes none.

    With a W&B logger each validation also becomes a table in which `before` is the first response to the same prompt.

    Args:
        dirpath: folder of the file.
        name: name of the file without `.jsonl`; None takes the stage's, as `ppo_validation`.
        every_n_validations: write at every n-th validation.
        console_rows: responses to print at each.
        table_rows: most responses in a W&B table.
    """

    def __init__(
        self,
        dirpath: str = "samples",
        name: str | None = None,
        every_n_validations: int = 1,
        console_rows: int = 0,
        table_rows: int = 64,
    ):
        require("a whole number above 0", "SampleTable.", every_n_validations=every_n_validations)
        require("a whole number, 0 or more", "SampleTable.", console_rows=console_rows, table_rows=table_rows)
        self.dirpath, self.name = dirpath, name
        self.every_n_validations, self.console_rows, self.table_rows = every_n_validations, console_rows, table_rows
        self.validations = 0
        self._taken_up = self._told_empty = False
        self._newest: int | None = None  # the file's last iteration, once this process has written there
        self._first: dict[str, dict[str, Any]] = {}  # prompt, and which of its occurrences -> the first look's row

    def path(self, module: pl.LightningModule) -> Path:
        """The file."""
        return Path(self.dirpath) / f"{self.name or f'{stage_name(module)}_validation'}.jsonl"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        path = self.path(pl_module)
        if stage == "fit" and (path.is_dir() or any(folder.is_file() for folder in path.parents)):
            raise UserError(
                f"{path} cannot be written: a file or folder of that name is in the way",
                where="SampleTable.dirpath",
                expected="a folder",
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._taken_up = False  # not here: a strategy that shards is told of its checkpoint only after this hook
        self._newest = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_up(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tell_without_validation(trainer, self)
        self._take_up(trainer, pl_module)
        if trainer.is_global_zero:
            self._first = _by_prompt(_first_look(_read(self.path(pl_module))))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # `validate` is at no step of the run that the file is of
            return
        if trainer.sanity_checking:
            if trainer.global_step:
                return
        else:
            self.validations += 1
            if self.validations % self.every_n_validations:
                return
        rows = gathered([{"iteration": trainer.global_step} | row for row in getattr(pl_module, "validation_rows", [])])
        if not rows and not self._told_empty:
            self._told_empty = True
            rank_zero_warn(
                f"SampleTable: {type(pl_module).__name__} left no samples in this validation, so none are written. PPO "
                "leaves some; in other stages instructlit.callbacks.ScoreSamples does",
                category=UserWarning,
            )
        if not rows or not trainer.is_global_zero:
            return
        try:
            if not rehearses(trainer):
                self._write(self.path(pl_module), rows, trainer.global_step)
        except OSError as error:
            rank_zero_warn(
                f"{self.path(pl_module)}: these samples cannot be written ({error.strerror}) and are left out"
            )
        for place, row in _by_prompt(rows).items():
            self._first.setdefault(place, row)
        for row in rows[: self.console_rows]:
            pl_module.print(_shown(row))
        self._log_tables(trainer, pl_module, rows)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = int(state_dict["validations"])

    def _take_up(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin a new file, or keep in it what a resumed run has done."""
        if trainer.is_global_zero and not self._taken_up and not rehearses(trainer):
            if trainer.ckpt_path is None:
                if self.path(module).is_file():
                    put_file_aside(self.path(module))
            else:
                self._keep(self.path(module), lambda iteration: iteration <= trainer.global_step)
        self._taken_up = True

    def _write(self, path: Path, rows: list[dict[str, Any]], iteration: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A resumed run may validate again where the last one did. Later the file is only added to: to read all of it at
        # every validation would take longer each time.
        if self._newest is None or self._newest >= iteration:
            self._keep(path, lambda other: other < iteration)
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json_lines(rows))
        except OSError:
            os.truncate(path, size)  # half a row would hide those behind it
            raise
        self._newest = iteration

    @staticmethod
    def _keep(path: Path, wanted: Callable[[int], bool]) -> None:
        """Rewrite the file without rows whose iteration is not wanted and without a line that was cut off."""
        if sum(wanted(row["iteration"]) for row in _read(path)) == sum(1 for _ in _lines(path)):
            return
        with replacing(path) as file:
            file.writelines(json_lines(row for row in _read(path) if wanted(row["iteration"])))

    def _log_tables(self, trainer: pl.Trainer, module: pl.LightningModule, rows: list[dict[str, Any]]) -> None:
        for logger in wandb_loggers(trainer):
            import wandb

            data = []
            for place, row in list(_by_prompt(rows).items())[: self.table_rows]:
                first = self._first[place]
                told = row | {
                    "before": first["response"],
                    "score_before": first.get("score"),
                    "prompt": _text(row["prompt"]),
                }
                data.append([told.get(column) for column in COLUMNS])
            table = wandb.Table(columns=list(COLUMNS), data=data)
            logger.log_metrics({f"{stage_name(module)}/samples": table}, step=logger_step(trainer))  # type: ignore[dict-item]


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from file  # `str.splitlines` would end a line at U+2028 and others too, which a response may hold


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the file; a last line that an interruption cut off is left out."""
    for line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            return
        yield row


def _first_look(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    first = next(rows, None)
    return [] if first is None else [first, *takewhile(lambda row: row["iteration"] == first["iteration"], rows)]


def _by_prompt(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows under their prompt and the count of its occurrences so far: a prompt may be asked more than once."""
    found: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for row in rows:
        prompt = json.dumps(row["prompt"], ensure_ascii=False)
        seen[prompt] = seen.get(prompt, 0) + 1
        found[f"{prompt} {seen[prompt]}"] = row
    return found


def _text(prompt: PromptText) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _shown(row: dict[str, Any]) -> str:
    score = f"{row['score']:.2f}" if row.get("score") is not None else "-"
    return f"  [{row['iteration']}] score {score}  {_text(row['prompt'])!r} -> {row['response']!r}"
