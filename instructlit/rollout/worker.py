"""Sampling in a separate process.

Trainer and worker exchange JSON objects over pipes, one per line: `{"do": "load", ...}` and `{"do": "sample", ...}`,
answered by an object that holds an `error` where it failed. The worker ends when its input does: it does not outlive a
trainer.
"""

import contextlib
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructlit.dtypes import Dtype
from instructlit.errors import UserError, require
from instructlit.rollout.engine import Sampling
from instructlit.rollout.external import ExternalEngine, Sample


class WorkerEngine(ExternalEngine):
    """`CachedEngine` in a separate process: on another device, in another precision, or under another Python. Each
    rank starts one.

    Args:
        device: where it samples, such as "cuda:1".
        dtype: of its weights.
        batch_size: prompts decoded together; None takes all.
        folder: see `ExternalEngine`.
        python: the interpreter, in which instructlit is installed; this one when not given.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch_size: int | None = None,
        folder: str | None = None,
        python: str | None = None,
    ):
        super().__init__(folder)
        require("a whole number above 0", "engine.", batch_size=batch_size)
        self.device, self.dtype, self.batch_size, self.python = device, dtype, batch_size, python
        self._process: subprocess.Popen[bytes] | None = None

    def reload(self, folder: Path) -> None:
        self._ask({"do": "load", "folder": str(folder), "device": self.device, "dtype": self.dtype})

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling, eos: int, seeds: Sequence[int]) -> list[Sample]:
        reply = self._ask(
            {
                "do": "sample",
                "prompts": list(prompts),
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "greedy": sampling.greedy,
                "batch_size": self.batch_size,
                "seed": seeds[0],  # of the one generator from which the worker draws for every row
            }
        )
        return list(zip(reply["ids"], reply["log_probs"], strict=True))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            code = process.wait()
            self._process, self._synced = None, False
            raise UserError(
                f"the sampling process ended with status {code}",
                where="engine",
                expected="a process that runs as long as the trainer; its last output is above",
            )
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"the sampling process failed: {reply['error']}", where="engine")
        return reply

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            # -P: the process itself puts the working folder last, where no file in it hides a library.
            command = [self.python or sys.executable, "-P", "-m", "instructlit.rollout.worker_process"]
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                raise UserError(
                    f"{command[0]} cannot be run: {error.strerror}", where="engine.python", expected="a Python"
                ) from error
            weakref.finalize(self, _end, self._process)
        return self._process


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.close()
    process.wait()
