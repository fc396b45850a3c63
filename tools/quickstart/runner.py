"""Runs stages in order inside one folder, skips what is finished and continues what was interrupted.

A stage is finished when `stamps/STAGE.json` holds the fingerprint of its command, its config files, the package version
and the fingerprints of the stages it needs, and when its outputs are there. A changed config therefore runs that stage
again and every stage that builds on it, and no other.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from instructlit import __version__
from instructlit.errors import UserError, nearest
from instructlit.tools.quickstart.process import run_logged
from instructlit.tools.quickstart.stages import Stage


@dataclass
class Stamp:
    """What is remembered of a stage between two starts of the job."""

    fingerprint: str
    finished: bool
    seconds: float  # of all attempts together

    def save(self, path: Path) -> None:
        """Writes the stamp beside its name and renames it, so that it is whole or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(vars(self)) + "\n")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Stamp | None":
        """None where there is no stamp or not a readable one."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


class Runner:
    """The stages of one run folder.

    Args:
        folder: the run folder, made if it is not there.
        plan: the stages in order.
        configs: folder whose YAML files are copied to `configs/` of the run folder, where the commands find them.
        program: what stands before a stage's arguments; by default this very package's command.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[Stage],
        configs: Path,
        program: Sequence[str] = (sys.executable, "-m", "instructlit"),
    ):
        self.folder, self.plan, self.configs, self.program = folder, list(plan), configs, list(program)
        self.environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

    def run(self) -> dict[str, float]:
        """Brings every stage to its end and returns the seconds each took, over all attempts.

        Raises:
            UserError: a stage failed, or another run holds the folder.
            SystemExit: status 130 after Ctrl-C.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / ".lock") as lock, _terminate_as_interrupt():
            self._copy_configs()
            try:
                began = time.monotonic()
                seconds = self._run(lock)
            except KeyboardInterrupt:
                print("\nStopped. The same command continues here.", flush=True)
                raise SystemExit(130) from None
        page = self.folder / "report.html"
        done = f"Done in {clock(time.monotonic() - began)}."
        print(f"\n{done} The page: {page}" if page.exists() else f"\n{done}", flush=True)
        return seconds

    def forget(self, name: str) -> None:
        """Has a stage run again, and with it all that builds on it.

        Raises:
            UserError: there is no stage of that name.
        """
        names = [stage.name for stage in self.plan]
        if name not in names:
            hint = nearest(name, names)
            raise UserError(
                f"there is no stage `{name}`",
                where="--restart_from",
                expected=f"did you mean {hint}?" if hint else f"one of {', '.join(names)}",
            )
        (self.folder / "stamps" / f"{name}.json").unlink(missing_ok=True)

    def fingerprints(self) -> dict[str, str]:
        """For each stage the hash of all that decides its result."""
        prints: dict[str, str] = {}
        for stage in self.plan:
            digest = hashlib.sha256(json.dumps([__version__, stage.command]).encode())
            for config in stage.configs:
                digest.update((self.folder / config).read_bytes())
            for need in stage.needs:
                digest.update(prints[need].encode())
            prints[stage.name] = digest.hexdigest()
        return prints

    def stamp_path(self, stage: Stage) -> Path:
        """Where the stage's stamp lies."""
        return self.folder / "stamps" / f"{stage.name}.json"

    def log_path(self, stage: Stage) -> Path:
        """Where the stage's terminal output goes."""
        return self.folder / "logs" / f"{stage.name}.log"

    def _run(self, lock: int) -> dict[str, float]:
        began = time.monotonic()
        prints = self.fingerprints()
        self._write_commands()
        stale: set[str] = set()
        seconds: dict[str, float] = {}
        estimate = Estimate(self.plan)
        for number, stage in enumerate(self.plan, start=1):
            stamp = Stamp.load(self.stamp_path(stage))
            head = f"[{number}/{len(self.plan)}] {stage.name}: {stage.title}"
            if self._finished(stage, stamp, prints[stage.name]) and stale.isdisjoint(stage.needs):
                assert stamp is not None
                seconds[stage.name] = stamp.seconds
                estimate.finished(stage, None)
                print(f"{head} (finished before)", flush=True)
                continue
            stale.add(stage.name)
            left = estimate.left()
            print(f"\n{head}\n      {clock(time.monotonic() - began)} gone, about {clock(left)} left", flush=True)
            print(f"      $ {stage.shown()}", flush=True)
            seconds[stage.name] = self._run_stage(stage, stamp, prints[stage.name], lock)
            estimate.finished(stage, seconds[stage.name] - (stamp.seconds if stamp else 0.0))
            self._write_seconds(seconds)
        return seconds

    def _finished(self, stage: Stage, stamp: Stamp | None, fingerprint: str) -> bool:
        return (
            not stage.always
            and stamp is not None
            and stamp.finished
            and stamp.fingerprint == fingerprint
            and all((self.folder / output).exists() for output in stage.outputs)
        )

    def _run_stage(self, stage: Stage, stamp: Stamp | None, fingerprint: str, lock: int) -> float:
        """Runs one stage to its end and returns its seconds, those of earlier attempts included."""
        same = stamp is not None and stamp.fingerprint == fingerprint and not stamp.finished
        resume = _last_checkpoint(self.folder / stage.checkpoints) if same and stage.trains else None
        earlier = stamp.seconds if stamp is not None and resume is not None else 0.0
        arguments = list(stage.command)
        if resume is None:
            self._clear(stage)
        else:
            arguments += ["--ckpt_path", str(resume.relative_to(self.folder))]
            print(f"      continues from {resume.relative_to(self.folder)}", flush=True)
        start = time.monotonic()

        def save(finished: bool) -> float:
            total = round(earlier + time.monotonic() - start, 1)
            Stamp(fingerprint, finished, total).save(self.stamp_path(stage))
            return total

        save(finished=False)
        log = self.log_path(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("a" if earlier else "w", encoding="utf-8") as file:
                file.write(f"$ {stage.shown()}\n")
                status = run_logged(
                    [*self.program, *arguments],
                    folder=self.folder,
                    log=file,
                    environment=self.environment,
                    keep_open=[lock],
                )
        except KeyboardInterrupt:
            save(finished=False)
            raise
        if status != 0:
            save(finished=False)
            raise _failure(stage, status, log)
        missing = [output for output in stage.outputs if not (self.folder / output).exists()]
        if missing:
            raise UserError(
                f"stage {stage.name} ended without error but {', '.join(missing)} is not there",
                where=str(self.folder),
                fix=f"see {log}; the stage's config should write it",
            )
        return save(finished=True)

    def _clear(self, stage: Stage) -> None:
        """Removes what an earlier attempt left, so that nothing of it mixes with the new one."""
        self.stamp_path(stage).unlink(missing_ok=True)
        if stage.trains:
            shutil.rmtree(self.folder / stage.checkpoints, ignore_errors=True)
            shutil.rmtree(self.folder / "logs" / stage.name, ignore_errors=True)
            (self.folder / "samples" / f"{stage.name}.jsonl").unlink(missing_ok=True)

    def _copy_configs(self) -> None:
        target = self.folder / "configs"
        target.mkdir(exist_ok=True)
        sources = sorted(self.configs.glob("*.yaml"))
        if not sources:
            raise UserError("holds no YAML file", where=str(self.configs), expected="pretrain.yaml, sft.yaml and so on")
        for source in sources:
            shutil.copyfile(source, target / source.name)

    def _write_commands(self) -> None:
        rows = [
            {"name": stage.name, "title": stage.title, "command": stage.shown(), "configs": list(stage.configs)}
            for stage in self.plan
        ]
        (self.folder / "commands.json").write_text(json.dumps(rows, indent=1) + "\n")

    def _write_seconds(self, seconds: dict[str, float]) -> None:
        """Adds the seconds to results.json as soon as that file exists."""
        path = self.folder / "results.json"
        if "evaluate" in seconds and path.exists():
            results: dict[str, Any] = json.loads(path.read_text())
            results["seconds"] = seconds
            path.write_text(json.dumps(results, indent=1) + "\n")


class Estimate:
    """Time left, from the stages' usual seconds scaled by how this machine has done so far."""

    def __init__(self, plan: Sequence[Stage]):
        self._open = {stage.name: stage.expected_seconds for stage in plan}
        self._expected = self._measured = 30.0  # as if half a minute had gone as expected: early scales stay calm

    def finished(self, stage: Stage, seconds: float | None) -> None:
        """Takes the measured seconds of a stage, None where it was skipped."""
        del self._open[stage.name]
        if seconds is not None:
            self._expected += stage.expected_seconds
            self._measured += seconds

    def left(self) -> float:
        """Seconds the open stages will take."""
        return sum(self._open.values()) * self._measured / self._expected


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, None where there is none."""
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _failure(stage: Stage, status: int, log: Path) -> UserError:
    with log.open(encoding="utf-8") as file:
        tail = "".join(f"    {line}" for line in deque(file, maxlen=15))
    return UserError(
        f"stage {stage.name} failed with exit status {status}; its last lines:\n{tail.rstrip()}",
        where=str(log),
        fix="mend the cause and give the same command again: finished stages are kept",
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Holds the folder against a second run; the system lets go when the last process of this run ends."""
    if os.name != "posix":
        yield os.open(os.devnull, os.O_RDONLY)
        return
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"another run (process {holder}) is at work in this folder",
            where=str(path.parent),
            fix="wait for it, stop it, or give another --output",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the job as Ctrl-C does: the running command is stopped and the stamps stay true."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
