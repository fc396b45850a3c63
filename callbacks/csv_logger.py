"""Metrics as a CSV file that continues where an interrupted run left it."""

import csv
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from instructlit.callbacks.common import put_file_aside
from instructlit.errors import counted, require
from instructlit.files import replacing


class CSVLogger(LightningCSVLogger):
    """Lightning's CSV logger, but no row is lost.

    Lightning deletes `metrics.csv` when a run begins in a folder that has one. Here a run that is continued keeps the
    rows from before its checkpoint (those after it are logged again), and a new run keeps the file under another
    name. Metrics of `validate` and `test` go to `metrics-validate.csv` and `metrics-test.csv` next to it. A process
    killed while a column is added, for which the file is rewritten, leaves the file unchanged. A full disk does not
    stop the run.

    Args:
        save_dir: folder of all runs.
        name: folder of this kind of run inside it; empty for none.
        version: folder of this run inside that; empty for none, counted up when not given.
        prefix: put before the name of every metric.
        flush_logs_every_n_steps: how many steps may be lost when the process is killed.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 1,
    ):
        require("a whole number above 0", "CSVLogger.", flush_logs_every_n_steps=flush_logs_every_n_steps)
        super().__init__(save_dir, name or "", version, prefix, flush_logs_every_n_steps)
        self._file = "metrics.csv"
        self._made: list[Path] = []  # folders that were not there
        self._earlier = False  # whether another's rows stand in the file, until it is known if this run goes on with it

    @property
    def identity(self) -> int | str:
        """The version, in whose folder a resumed run continues."""
        return self.version

    def take_up(self, identity: int | str) -> None:
        """Continue in the folder of that version."""
        self._version = identity

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, made without deleting what was written before."""
        if self._experiment is None:
            self._made += [f for f in map(Path, (self.log_dir, self.root_dir, self.save_dir)) if not f.exists()]
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir, self._file)
            self._earlier = Path(self._experiment.metrics_file_path).exists()
        return self._experiment

    def log_for(self, stage: TrainerFn) -> None:
        """Write to the file of what the trainer does next."""
        file = "metrics.csv" if stage == TrainerFn.FITTING else f"metrics-{stage.value}.csv"
        if file != self._file:
            self._file, self._experiment = file, None

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Keep the rows that were logged before `step`; later ones will be logged again."""
        writer = self.experiment
        if not self._earlier:
            return
        path = Path(writer.metrics_file_path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last may be cut off where the process was killed
        reader = csv.DictReader(whole)
        names = list(reader.fieldnames or ())
        kept = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        _write(path, names, kept)
        writer.metrics_keys = names
        self._earlier = False

    @rank_zero_only
    def save(self) -> None:
        """Write the rows logged since the last time. Those for which there is no space wait, and training continues."""
        writer = self.experiment
        path, names = Path(writer.metrics_file_path), list(writer.metrics_keys)
        size = path.stat().st_size if path.exists() else 0
        new = set().union(*writer.metrics) - set(names)
        before = path.read_bytes() if new and size else None  # a new column rewrites the whole file
        try:
            super().save()
        except OSError as error:
            writer.metrics_keys = names
            with suppress(OSError):  # half a row must not stand before the next one
                path.write_bytes(before) if before is not None else os.truncate(path, size)
            rank_zero_warn(
                f"{path}: metrics cannot be written ({error.strerror}). Kept in memory: "
                f"{counted(len(writer.metrics), 'row')}, to be written when there is space again."
            )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; a run that was refused before it logged anything leaves no folder."""
        super().finalize(status)
        for folder in self._made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs a row; the first one of a run that is not continued puts aside what was in the folder."""
        if self.experiment is not None and self._earlier:
            put_file_aside(Path(self.experiment.metrics_file_path))
            self._earlier = False
        super().log_metrics(metrics, step)


class _Writer(ExperimentWriter):
    """Lightning's writer, which deletes nothing, and whose rewriting of the file is all or nothing."""

    def __init__(self, log_dir: str, file: str):
        super().__init__(log_dir)
        self.metrics_file_path = str(Path(log_dir) / file)

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the file that it finds."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        _write(path, fieldnames, rows)


def _write(path: Path, names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
