"""Checkpoints that a run resumes from: each is a folder that is complete or does not exist.

    checkpoints/sft/resume/
      batch-00000120/   state.ckpt (one file; a folder where the strategy shards it) and manifest.json
      batch-00000140/
      finished.json     the run is complete, and what it depended on
      .lock, .holder    locked by the process that trains, and which one that is

A checkpoint is written under a hidden name, synced, and renamed when all of it is on the disk. `manifest.json` says
which files belong to it, how long they are, their checksums, and what the run depended on.
"""

import json
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from instructlit.errors import UserError

STATE, MANIFEST, FINISHED = "state.ckpt", "manifest.json", "finished.json"
PREFIX, PARTIAL = "batch-", ".partial-"
LOCK, HOLDER = ".lock", ".holder"
FORMAT = 3
LOCK_SECONDS = 8.0
"""How long a folder's lock is waited for: a killed process's workers may hold it until they notice, within five."""


@dataclass
class Manifest:
    """What a checkpoint, or the end of a run, records about itself."""

    stage: str
    batch: int  # training batches done
    run: dict[str, Any]  # what the run depends on: see `callbacks.same_run`
    loggers: list[Any]  # of each logger that recognises its run: its class and the run's identity
    files: dict[str, list[int]] = field(default_factory=dict)  # bytes and CRC-32 of each, by its path in the folder
    format: int = FORMAT


def claim(folder: Path) -> FileLock:
    """Lock a folder for this process until it releases what is returned, or ends in any way.

    Raises:
        UserError: another process has it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise UserError(
            f"another run is using it: {(folder / HOLDER).read_text(encoding='utf-8')}",
            where=str(folder),
            expected="a folder that only this run uses",
            fix="wait for it or stop it, or give this run other folders",
        ) from error
    (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


def partial(folder: Path, batch: int) -> Path:
    """Where the checkpoint after `batch` batches is written until it is complete."""
    return folder / f"{PARTIAL}{_name(batch)}"


def publish(partial: Path, manifest: Manifest) -> Path:
    """Give a complete checkpoint its manifest and its name; returns where it is now.

    Every file and folder is synced before the rename and the parent after it, so that the name stands for all of the
    content even where the power fails.
    """
    manifest.files = {str(file.relative_to(partial)): _measured(file) for file in _files(partial)}
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    for file in _files(partial):
        _sync(file)
    for inner in [path for path in partial.rglob("*") if path.is_dir()]:
        _sync(inner)
    _sync(partial)
    final = partial.parent / partial.name.removeprefix(PARTIAL)
    if final.exists():  # a run that resumed from an older checkpoint is here again
        final.rename(partial.with_name(f"{PARTIAL}replaced"))
    partial.rename(final)
    _sync(final.parent)
    clear_partial(final.parent)
    return final


def clear_partial(folder: Path) -> None:
    """Remove what a killed process had not finished writing."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in checkpoints(folder)[keep:]:
        gone = path.with_name(f"{PARTIAL}{path.name}")
        path.rename(gone)  # at once, so that a kill leaves no half of it under its name
        shutil.rmtree(gone)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by name, the newest first."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if path.is_dir()), reverse=True)


def newest(folder: Path, stage: str) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a stage, None if there is none, and a sentence for each that was skipped."""
    skipped = []
    for path in checkpoints(folder):
        fault = why_unusable(path, stage)
        if fault is None:
            return path, skipped
        skipped.append(f"{path} is skipped: {fault}")
    return None, skipped


def why_unusable(path: Path, stage: str) -> str | None:
    """Why a run of that stage cannot resume from a checkpoint; None if it can."""
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return error.what
    if manifest.stage != stage:
        return f"it is of stage {manifest.stage}, this run is {stage}"
    return _damage(path, manifest)


def check_whole(state: Path, where: str) -> None:
    """Refuse a state, a file or a folder of shards, that is damaged. Next to one of a `ResumeCheckpoint` is a manifest
    for every byte; of another file only the end is checked.

    Raises:
        UserError: it is damaged; `where` is the option that names it.
    """
    if (state.parent / MANIFEST).is_file():
        fault = _damage(state.parent, read_manifest(state.parent))
    elif state.is_file() and not zipfile.is_zipfile(state):  # what torch writes is one, with its table of contents last
        fault = f"{state.name} is truncated, or was never a checkpoint"
    else:
        fault = None
    if fault is not None:
        expected, fix = "a complete checkpoint", "use an earlier one"
        raise UserError(f"{state} cannot be read as a checkpoint: {fault}", where=where, expected=expected, fix=fix)


def state_of(path: str) -> str:
    """The state in the folder of a checkpoint; any other path as it is."""
    return str(Path(path) / STATE) if (Path(path) / MANIFEST).is_file() else path


def read_manifest(path: Path, name: str = MANIFEST) -> Manifest:
    """What a folder records about itself in the file `name`: a checkpoint, or the folder of a complete run.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    file = path / name
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        manifest = Manifest(**fields)
    except OSError as error:
        raise UserError(f"it has no {name}, so it was not written by instructlit", where=str(path)) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"its {name} cannot be read", where=str(path), fix=f"remove {file}") from error
    if manifest.format != FORMAT:
        raise UserError(f"it is of format {manifest.format}, this version reads {FORMAT}", where=str(path))
    return manifest


def mark_finished(folder: Path, manifest: Manifest) -> None:
    """Record that the run is complete, and what it depended on."""
    beside = folder / f"{PARTIAL}{FINISHED}"
    beside.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    _sync(beside)
    beside.rename(folder / FINISHED)
    _sync(folder)


def finished(folder: Path) -> Manifest | None:
    """What is recorded of the complete run in this folder; None if there is none.

    Raises:
        UserError: it is not one of ours.
    """
    return read_manifest(folder, FINISHED) if (folder / FINISHED).is_file() else None


def put_aside(folder: Path, after: int = 0) -> Path | None:
    """Move checkpoints after batch `after`, which a run that begins there does not know, out of its way; returns where
    they are now, None if there were none. The record that an earlier run is complete is removed.
    """
    (folder / FINISHED).unlink(missing_ok=True)
    later = [path for path in checkpoints(folder) if path.name > _name(after)]
    if not later:
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
        number += 1
    aside.mkdir()
    for path in later:
        path.rename(aside / path.name)
    return aside


def _damage(path: Path, manifest: Manifest) -> str | None:
    """How the files of a checkpoint differ from what its manifest says; None where they do not."""
    for name, (size, _) in manifest.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
    for name, written in manifest.files.items():
        try:
            if _measured(path / name) != written:
                return f"{name} is damaged: its checksum has changed since it was written"
        except OSError as error:
            return f"{name} is damaged ({error})"
    return None


def _measured(file: Path) -> list[int]:
    """Bytes of a file and their CRC-32, which a disk or a copy that changes some of them does not keep."""
    size = checksum = 0
    with file.open("rb") as content:
        while piece := content.read(1 << 20):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]


def _name(batch: int) -> str:
    return f"{PREFIX}{batch:08d}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
