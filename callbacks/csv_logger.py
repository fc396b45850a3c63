"""Metrics as a CSV file that goes on where an interrupted run left it."""

import csv
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn


class CSVLogger(LightningCSVLogger):
    """Lightning's CSV logger, but a run that is continued in its folder keeps the rows it had.

    Lightning deletes `metrics.csv` when a run begins in a folder that has one. Here the rows before the first step that
    is logged stay; those from that step on were logged after the checkpoint that the run continues from, and are logged
    again. A disk without room for a row does not stop the run.

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
        super().__init__(save_dir, name or "", version, prefix, flush_logs_every_n_steps)
        self._earlier: Path | None = None  # the rows of the run that is continued, until the first step is known

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, begun without the loss of what was written before."""
        if self._experiment is None:
            metrics = Path(self.log_dir) / "metrics.csv"
            aside = metrics.with_suffix(".earlier")
            if metrics.exists() and not aside.exists():  # where both are there, a process was killed while merging them
                os.replace(metrics, aside)
            self._earlier = aside if aside.exists() else None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")  # nothing is deleted
                return super().experiment
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs a row; the first one decides which rows of an earlier attempt stay."""
        writer = self.experiment
        if self._earlier is not None and step is not None:
            self._merge(writer, step)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows logged since the last time. Those for which there is no room wait, and training goes on."""
        writer = self.experiment
        path, names = Path(writer.metrics_file_path), list(writer.metrics_keys)
        size = path.stat().st_size if path.exists() else 0
        new = set().union(*writer.metrics) - set(names)
        before = path.read_bytes() if new and size else None  # a new column has the whole file written anew
        try:
            super().save()
        except OSError as error:
            writer.metrics_keys = names
            with suppress(OSError):  # half a row must not stand before the next one
                path.write_bytes(before) if before is not None else os.truncate(path, size)
            rank_zero_warn(
                f"{path}: metrics cannot be written ({error.strerror}). {len(writer.metrics)} rows wait in memory and "
                "are written when there is room again."
            )

    def _merge(self, writer: Any, step: int) -> None:
        assert self._earlier is not None
        with self._earlier.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            kept = [row for row in reader if row.get("step") and int(row["step"]) < step]
        path = Path(writer.metrics_file_path)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, names)
            rows.writeheader()
            rows.writerows(kept)
        writer.metrics_keys = names
        self._earlier.unlink()
        self._earlier = None
