"""Runs stages in order in one folder, skips finished ones and resumes interrupted ones. Neighbours that do not
depend on each other run in parallel.

A stage is finished when `stamps/STAGE.json` holds the fingerprint of its command, its config files, the package version
and the fingerprints of the stages it needs, and its outputs exist. A changed config therefore runs that stage again and
every stage that depends on it, and no other.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from instructlit import __version__
from instructlit.errors import Ending, UserError, nearest
from instructlit.files import write_json
from instructlit.tools.quickstart.attempt import Attempt, Stamp
from instructlit.tools.quickstart.process import Job, run_logged
from instructlit.tools.quickstart.stages import Stage

LOCK = ".lock"
"""The lock file of a run folder, with the process id of the job that holds it."""


class Runner:
    """The stages of one run folder.

    Args:
        folder: the run folder, created if it does not exist.
        plan: the stages in order.
        configs: folder whose YAML files are copied to `configs/` of the run folder, where the commands find them; or
            the files themselves, by their names there.
        program: the command before a stage's arguments; by default this package's own.
        brief: report a finished stage only once, and print nothing at the end: for a plan that grows and is run
            repeatedly.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[Stage],
        configs: Path | Mapping[str, Path],
        program: Sequence[str] = (sys.executable, "-m", "instructlit"),
        brief: bool = False,
    ):
        self.folder, self.plan, self.configs, self.program = folder, list(plan), configs, list(program)
        self.brief = brief
        self._told: set[str] = set()  # stages that have been reported
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

    def run(self) -> dict[str, float]:
        """Runs every stage to its end and returns the seconds each took, over all attempts.

        Raises:
            UserError: a stage failed, or another run holds the folder.
            Ending: status 130 after Ctrl-C.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / LOCK) as lock, _terminate_as_interrupt():
            self._copy_configs()
            try:
                began = time.monotonic()
                seconds = self._run(lock)
            except KeyboardInterrupt:
                print("\nStopped. The same command resumes here.", flush=True)
                raise Ending(130) from None
        if self.brief:
            return seconds
        page = self.folder / "report.html"
        done = f"Done in {clock(time.monotonic() - began)}."
        print(f"\n{done} The page: {page}" if page.exists() else f"\n{done}", flush=True)
        return seconds

    def forget(self, name: str) -> None:
        """Makes a stage run again, and all that depend on it.

        Raises:
            UserError: there is no stage of that name.
        """
        by_name = {stage.name: stage for stage in self.plan}
        if name not in by_name:
            hint = nearest(name, by_name)
            raise UserError(
                f"there is no stage `{name}`",
                where="--restart_from",
                expected=f"did you mean {hint}?" if hint else f"one of {', '.join(by_name)}",
            )
        (self.folder / by_name[name].stamp).unlink(missing_ok=True)

    def fingerprints(self) -> dict[str, str]:
        """For each stage the hash of all that its result depends on."""
        prints: dict[str, str] = {}
        for stage in self.plan:
            digest = hashlib.sha256(json.dumps([__version__, stage.command]).encode())
            for config in stage.configs:
                digest.update((self.folder / config).read_bytes())
            for need in stage.needs:
                digest.update(prints[need].encode())
            prints[stage.name] = digest.hexdigest()
        return prints

    def _run(self, lock: int) -> dict[str, float]:
        began = time.monotonic()
        prints = self.fingerprints()
        self._write_commands()
        stale: set[str] = set()
        seconds: dict[str, float] = {}
        plan = waves(self.plan)
        estimate = Estimate(plan)
        numbers = {stage.name: number for number, stage in enumerate(self.plan, start=1)}
        for at, wave in enumerate(plan):
            open_stages = []
            for stage in wave:
                stamp = Stamp.load(self.folder / stage.stamp)
                head = f"[{numbers[stage.name]}/{len(self.plan)}] {stage.name}: {stage.title}"
                if self._finished(stage, stamp, prints[stage.name]) and stale.isdisjoint(stage.needs):
                    assert stamp is not None
                    seconds[stage.name] = stamp.seconds
                    if not self.brief or stage.name not in self._told:
                        print(f"{head} (already finished)", flush=True)
                    self._told.add(stage.name)
                    continue
                stale.add(stage.name)
                self._told.add(stage.name)
                open_stages.append(stage)
                print(f"\n{head}\n      $ {stage.shown()}", flush=True)
            if not open_stages:
                estimate.finished(at, None)
                continue
            start = time.monotonic()
            print(f"      {clock(start - began)} elapsed, about {clock(estimate.left())} left", flush=True)
            seconds |= self._run_wave(open_stages, self._threads(wave), prints, lock)
            estimate.finished(at, time.monotonic() - start)
        self._write_seconds(seconds)
        return seconds

    def _finished(self, stage: Stage, stamp: Stamp | None, fingerprint: str) -> bool:
        return (
            stamp is not None
            and stamp.finished
            and stamp.fingerprint == fingerprint
            and all((self.folder / output).exists() for output in stage.outputs)
        )

    @staticmethod
    def _threads(wave: Sequence[Stage]) -> dict[str, str]:
        """Parallel stages share the cores equally, even if some of them are already finished: the number of threads
        affects the last bits of a sum.
        """
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(wave)))} if len(wave) > 1 else {}

    def _run_wave(
        self, stages: Sequence[Stage], threads: dict[str, str], prints: dict[str, str], lock: int
    ) -> dict[str, float]:
        """Runs stages in parallel to their end; returns the seconds of each, earlier attempts included."""
        attempts = {stage.name: Attempt(self.folder, stage, prints[stage.name]) for stage in stages}
        environment = {**self.environment, **threads}
        start = time.monotonic()
        with contextlib.ExitStack() as files:
            jobs = {}
            for name, attempt in attempts.items():
                log = files.enter_context(attempt.begin())
                where = self.folder / attempt.stage.folder
                where.mkdir(parents=True, exist_ok=True)
                jobs[name] = Job([*self.program, *attempt.stage.command], log, environment, where)
            try:
                statuses = run_logged(jobs, keep_open=[lock])
            finally:
                for attempt in attempts.values():
                    attempt.save(time.monotonic() - start)
        ended = {name: status for name, status in statuses.items() if status is not None}
        for name in sorted(ended, key=lambda name: ended[name] != 0):  # the successful ones first: they are kept
            attempts[name].finish(ended[name])
        return {name: attempt.seconds for name, attempt in attempts.items()}

    def _copy_configs(self) -> None:
        target = self.folder / "configs"
        target.mkdir(exist_ok=True)
        if isinstance(self.configs, Path):
            sources = {source.name: source for source in sorted(self.configs.glob("*.yaml"))}
        else:
            sources = dict(self.configs)
        if not sources:
            raise UserError("has no YAML file", where=str(self.configs), expected="pretrain.yaml, sft.yaml and so on")
        for name, source in sources.items():
            shutil.copyfile(source, target / name)

    def _write_commands(self) -> None:
        rows = [
            {"name": stage.name, "title": stage.title, "command": stage.shown(), "configs": list(stage.configs)}
            for stage in self.plan
        ]
        write_json(self.folder / "commands.json", rows)

    def _write_seconds(self, seconds: dict[str, float]) -> None:
        """Adds the seconds to results.json, if this job has written one."""
        path = self.folder / "results.json"
        if "evaluate" in seconds and path.exists():
            results: dict[str, Any] = json.loads(path.read_text())
            results["seconds"] = seconds
            write_json(path, results)


def waves(plan: Sequence[Stage]) -> list[list[Stage]]:
    """The plan cut into groups of neighbours that do not depend on each other and can run in parallel."""
    groups: list[list[Stage]] = []
    for stage in plan:
        if groups and {other.name for other in groups[-1]}.isdisjoint(stage.needs):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


class Estimate:
    """Time left, from the stages' usual seconds scaled by this machine's speed so far."""

    def __init__(self, plan: Sequence[Sequence[Stage]]):
        self._open = {at: max(stage.expected_seconds for stage in wave) for at, wave in enumerate(plan)}
        self._expected = self._measured = 30.0  # as if half a minute had gone as expected: steadies early estimates

    def finished(self, wave: int, seconds: float | None) -> None:
        """Takes the measured seconds of a wave, None where it was skipped."""
        expected = self._open.pop(wave)
        if seconds is not None:
            self._expected += expected
            self._measured += seconds

    def left(self) -> float:
        """Seconds the open waves will take."""
        return sum(self._open.values()) * self._measured / self._expected


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def started_by(folder: Path) -> bool:
    """Whether this process was started by the job that is running in the folder."""
    try:
        return (folder / LOCK).read_text() == str(os.getppid())
    except OSError:
        return False


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Locks the folder against a second run; the system releases it when the last process of this run ends."""
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
            f"another run (process {holder}) is using this folder",
            where=str(path.parent),
            fix="wait for it, stop it, or choose another --output",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the job as Ctrl-C does: the running command is stopped and the stamps stay correct."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
