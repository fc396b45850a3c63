"""What the workloads of `instructlit benchmark` share: options, the rows and their order, time and memory spent."""

import contextlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from instructlit.errors import UserError, counted, require
from instructlit.models.backbone import Backbone

D = TypeVar("D")
MEBIBYTE = 1 << 20


@dataclass
class Work:
    """The options of the command."""

    model: str
    data: str
    reward_model: str | None
    limit: int | None
    precision: str
    threads: int | None
    batch_size: int | None
    max_new_tokens: int
    ppo_epochs: int
    lora: int | None
    seed: int
    device: str
    compile: bool = False
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        counts = ("limit", "threads", "batch_size", "max_new_tokens", "ppo_epochs", "lora")
        require("a whole number above 0", "--", **{name: getattr(self, name) for name in counts})
        if self.threads and self.threads > (cores := os.cpu_count() or 1):
            raise UserError(
                f"found {self.threads}", where="--threads", expected=f"at most {cores}, the CPUs of this machine"
            )
        require("a seed, from 0 to 4294967295", "--", seed=self.seed)
        if not Path(self.data).is_file():
            raise UserError(f"no such file: {self.data}", where="--data", expected="a file of JSON Lines")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"{self.device} is not available", where="--device", expected="auto, cpu or cuda")
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)

    def backbone(self, path: str, dtype: Literal["float32", "bfloat16"] = "float32", **options: Any) -> Backbone:
        """The model in a folder, as the options say."""
        return Backbone(path, dtype=dtype, compile=self.compile, **options)

    @property
    def scalar(self) -> str:
        """The folder that reward and value model start from."""
        beside = Path(f"{self.model.rstrip('/')}-rm")
        return self.reward_model or (str(beside) if beside.is_dir() else self.model)

    def now(self) -> float:
        """Seconds on a clock, after the GPU has finished its queued work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def files(self) -> Iterator[tuple[Path, Path]]:
        """A temporary folder, and the file to read, cut to `limit`."""
        with tempfile.TemporaryDirectory(prefix="instructlit-benchmark-") as name:
            folder, file = Path(name), Path(self.data)
            if self.limit is not None:
                with file.open(encoding="utf-8") as lines:
                    rows = list(islice(lines, self.limit))
                file = folder / f"rows{file.suffix}"
                file.write_text("".join(rows), encoding="utf-8")
            yield folder, file

    def order(self, rows: int) -> np.ndarray:
        """The order of the rows, (rows,) int64."""
        return torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed)).numpy()

    def in_order(self, kind: type[D]) -> type[D]:
        """A datamodule class with its rows in `order`."""
        order = self.order

        class Ordered(kind):  # type: ignore[misc,valid-type]
            def plan(self, split: Any, batch_size: int, bucketing: bool = False) -> Any:
                return InOrder(order(len(split.rows)), batch_size)

        return Ordered  # type: ignore[return-value]

    def told(self) -> dict[str, Any]:
        """The options, for the report."""
        return {
            "model": self.model,
            "precision": self.precision,
            "compile": self.compile,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "torch": torch.__version__,
        }

    def spent(self) -> dict[str, Any]:
        """Memory and time of the whole process."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        unit = 1 if sys.platform == "darwin" else 1024
        figures: dict[str, Any] = {
            "process_cpu_s": round(used.ru_utime + used.ru_stime, 2),
            "peak_rss_mb": round(used.ru_maxrss * unit / MEBIBYTE),
            "total_s": round(time.perf_counter() - self.began, 2),
        }
        if self.device == "cuda":
            figures["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / MEBIBYTE)
        return figures


class InOrder:
    """A data plan of one epoch in a given order; an incomplete last batch is left out.

    Args:
        order: rows, 1-d int64.
        batch_size: rows of a batch.
    """

    def __init__(self, order: np.ndarray, batch_size: int):
        self.order, self.batch_size = order, batch_size
        if len(order) < batch_size:
            raise UserError(
                f"found {counted(len(order), 'row')}", where="--data", expected=f"at least {batch_size}, one batch"
            )

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def batch(self, number: int) -> np.ndarray:
        place = number % len(self) * self.batch_size
        return self.order[place : place + self.batch_size]
