"""Reads the file that an offline W&B run writes: a LevelDB log of protobuf records, with the header `:W&B`."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, PREAMBLE = 32768, 7, b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(data: bytes) -> Iterator[bytes]:
    """Whole records; one may be cut into pieces over several blocks."""
    assert not data or data.startswith(PREAMBLE)
    position, held = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block that has no room for a header
            position += BLOCK - position % BLOCK
            continue
        crc, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        piece = data[position + HEADER : position + HEADER + length]
        if len(piece) < length:
            return  # still being written
        assert crc == zlib.crc32(piece, zlib.crc32(bytes([kind]))), f"damaged at byte {position}"
        position += HEADER + length
        held = piece if kind in (FULL, FIRST) else held + piece
        if kind in (FULL, LAST):
            yield held


class OfflineRun:
    """What stands in an offline run's folder; waits a while for wandb's own process to write the end of the run."""

    def __init__(self, folder: Path, seconds: float = 30.0):
        give_up = time.monotonic() + seconds
        self._read(folder)
        while not self.finished and time.monotonic() < give_up:
            time.sleep(0.2)
            self._read(folder)
        assert self.finished, f"{folder} does not hold a finished run"

    def _read(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2 as pb

        files = list(folder.glob("*.wandb"))  # wandb's own process makes it, and may take its time
        self.history: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.metrics: dict[str, str] = {}  # name or glob -> its x-axis
        self.artifacts: list[tuple[str, str, bool, str]] = []  # type, name, whether it is an input, digest
        self.alerts: list[str] = []
        self.run: dict[str, str] = {}
        self.finished = False
        for chunk in chunks(files[0].read_bytes() if files else b""):
            record = pb.Record()  # type: ignore[attr-defined]
            record.ParseFromString(chunk)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                self.history.append(row)
            elif kind == "run":
                self.run |= {"group": record.run.run_group, "project": record.run.project, "job": record.run.job_type}
                self._update(record.run.config)
            elif kind == "config":
                self._update(record.config)
            elif kind == "metric":
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            elif kind == "artifact":
                a = record.artifact
                self.artifacts.append((a.type, a.name, a.use_after_commit, a.digest))
            elif kind == "alert":
                self.alerts.append(record.alert.title)
            elif kind == "exit":
                self.finished = True

    def _update(self, config: Any) -> None:
        for item in config.update:
            self.config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)

    @property
    def names(self) -> set[str]:
        """Every metric of the history."""
        return {name for row in self.history for name in row}
