"""No room for metrics or samples: training goes on, and what is written is whole."""

import csv
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from instructlit.callbacks import CSVLogger, SampleTable


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """No file of this process can grow over so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("column", ["a", "b"], ids=["the columns as before", "a new column"])
def test_metrics_wait_until_there_is_room(tmp_path: Path, column: str) -> None:
    logger = CSVLogger(str(tmp_path), name="", version="", flush_logs_every_n_steps=1000)
    for step in range(3):
        logger.log_metrics({"a": float(step)}, step)
        logger.save()
    path = tmp_path / "metrics.csv"
    before = path.read_text()
    logger.log_metrics({column: 3.0}, 3)
    with (
        no_room_beyond(path.stat().st_size + 2),
        pytest.warns(UserWarning, match=r"cannot be written .*in memory: 1 row,"),
    ):
        logger.save()
    assert path.read_text() == before
    logger.log_metrics({column: 5.0}, 5)
    logger.finalize("success")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 5]
    assert [float(row[column]) for row in rows[3:]] == [3.0, 5.0]


def test_samples_without_room_are_left_out_and_the_others_stay(tmp_path: Path) -> None:
    table = SampleTable(str(tmp_path), name="samples")
    module: Any = SimpleNamespace(stage="toy", validation_rows=[{"prompt": "p", "response": "r" * 50}] * 4)
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    run: Any = SimpleNamespace(
        state=state, is_global_zero=True, sanity_checking=False, global_step=1, loggers=[], fast_dev_run=False
    )
    path = tmp_path / "samples.jsonl"
    table.on_validation_end(run, module)
    before = path.read_text()
    run.global_step = 2
    with (
        no_room_beyond(path.stat().st_size + 10),
        pytest.warns(UserWarning, match="these samples cannot be written"),
    ):
        table.on_validation_end(run, module)
    assert path.read_text() == before
    run.global_step = 3
    table.on_validation_end(run, module)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1] * 4 + [3] * 4
