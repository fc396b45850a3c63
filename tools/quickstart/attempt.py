"""One attempt at a stage, and the stamp that records it between two starts of the job."""

import json
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from instructlit.checkpoints import checkpoints
from instructlit.errors import UserError
from instructlit.files import write_text
from instructlit.tools.quickstart.stages import Stage


@dataclass
class Stamp:
    """What is recorded of a stage between two starts of the job."""

    fingerprint: str
    finished: bool
    seconds: float  # of all attempts together

    def save(self, path: Path) -> None:
        """Writes the stamp to a temporary file and renames it, so that it is complete or absent."""
        write_text(path, json.dumps(vars(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Stamp | None":
        """The stamp; None if it is missing or unreadable."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


class Attempt:
    """One attempt at a stage: from scratch, or from the checkpoint of an earlier attempt at the same stage.

    The stage's own command finds its checkpoint; this class removes those of a stage that has changed.

    Attributes:
        seconds: seconds of all attempts together, as of the last stamp.
    """

    def __init__(self, folder: Path, stage: Stage, fingerprint: str):
        self.folder, self.stage, self.fingerprint = folder, stage, fingerprint
        stamp = Stamp.load(folder / stage.stamp)
        same = stamp is not None and stamp.fingerprint == fingerprint and not stamp.finished
        continues = same and stage.trains and bool(checkpoints(folder / stage.resume))
        self.seconds = self._earlier = stamp.seconds if stamp is not None and continues else 0.0
        if not continues:
            self._clear()

    def begin(self) -> TextIO:
        """Stamps the stage as started; returns its log, which is emptied unless the stage is resumed."""
        self.save(0.0)
        path = self.folder / self.stage.log
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a" if self._earlier else "w", encoding="utf-8")
        file.write(f"$ {self.stage.shown()}\n")
        return file

    def save(self, spent: float) -> None:
        """Stamps the stage as unfinished after so many seconds of this attempt."""
        self.seconds = round(self._earlier + spent, 1)
        self._stamp(finished=False)

    def finish(self, status: int) -> None:
        """Stamps the stage as finished.

        Raises:
            UserError: it failed, or did not write its outputs.
        """
        log = self.folder / self.stage.log
        if status != 0:
            raise _failure(self.stage, status, log)
        missing = [output for output in self.stage.outputs if not (self.folder / output).exists()]
        if missing:
            raise UserError(
                f"stage {self.stage.name} succeeded but did not write {', '.join(missing)}; "
                f"its last lines:\n{_tail(log)}",
                where=str(log),
                fix="check that its command or config writes it",
            )
        self._stamp(finished=True)

    def _stamp(self, finished: bool) -> None:
        Stamp(self.fingerprint, finished, self.seconds).save(self.folder / self.stage.stamp)

    def _clear(self) -> None:
        """Removes what an earlier attempt left, so that it does not mix with the new one."""
        (self.folder / self.stage.stamp).unlink(missing_ok=True)
        if self.stage.trains:
            shutil.rmtree(self.folder / self.stage.checkpoints, ignore_errors=True)
            shutil.rmtree(self.folder / self.stage.kept("logs"), ignore_errors=True)
            (self.folder / self.stage.kept("samples", ".jsonl")).unlink(missing_ok=True)


def _failure(stage: Stage, status: int, log: Path) -> UserError:
    return UserError(
        f"stage {stage.name} failed with exit status {status}; its last lines:\n{_tail(log)}",
        where=str(log),
        fix="fix the cause and run the same command again: finished stages are kept",
    )


def _tail(log: Path) -> str:
    with log.open(encoding="utf-8") as file:
        return "".join(f"    {line}" for line in deque(file, maxlen=15)).rstrip()
