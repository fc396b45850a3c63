"""Token ids are made once: a store is cached under the hash of its inputs and found again by the next run.

The folder is `INSTRUCTLIT_CACHE`, by default `instructlit` in the user's cache folder; `INSTRUCTLIT_CACHE=off` keeps
nothing after the run. An entry is written to a temporary folder and moved into place when complete, so no run finds
half of one. Tables are plain numbers and JSON: reading them runs no code.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from instructlit.data.rows import Rows
from instructlit.data.store import Store, Writer, explained

VARIABLE = "INSTRUCTLIT_CACHE"

Fill = Callable[[Writer], dict[str, Any]]
"""Writes the tables of a store and returns its facts."""


def cache_folder() -> Path | None:
    """The folder of the cache; None if it is off."""
    told = os.environ.get(VARIABLE, "")
    if told.lower() in ("off", "0", "no", "false"):
        return None
    base = Path(told).expanduser() if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "instructlit"
    return base.expanduser().absolute() / "tokens"


def key_of(files: Sequence[Rows], how: Any) -> str | None:
    """The cache key of what is made from some files.

    Args:
        files: in order.
        how: everything else that it depends on, as JSON values; None if that is unknown.

    Returns:
        A hash, or None if `how` is None.
    """
    if how is None:
        return None
    sources = [
        [rows.sha256(), type(rows).__name__, Path(rows.path).suffix.lower(), *rows.source.identity] for rows in files
    ]
    return hashlib.sha256(json.dumps([_code(), sources, how], sort_keys=True).encode()).hexdigest()[:40]


def kept(key: str | None, fill: Fill, what: str) -> Store:
    """The store with that key, from the cache or newly made.

    Args:
        key: from `key_of`; with None nothing is kept.
        fill: fills a new store.
        what: the name of the data, for messages.

    Raises:
        UserError: from `fill`, or if there is no room for the store.
    """
    folder = cache_folder()
    if key is None or folder is None:
        return _temporary(fill)
    entry = folder / key
    try:
        if (found := _found(entry)) is None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(folder / f"{key}.lock"):  # only one of several processes makes it
                if (found := _found(entry)) is None:
                    return _made(entry, fill, what)
    except OSError as error:
        rank_zero_warn(
            f"{what}: cannot cache the token ids in {folder} ({error.strerror}); they are made for this run only"
        )
        return _temporary(fill)
    rank_zero_info(f"{what}: using the token ids of an earlier run, {entry}")
    return found


def _found(entry: Path) -> Store | None:
    """The store at `entry`, if there is one and it is intact; a damaged one is removed."""
    if not entry.is_dir():
        return None
    try:
        store = Store(entry)
        fault = next(store.faults(), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"its list of tables cannot be read ({type(error).__name__})"
    else:
        if fault is None:
            return store
    rank_zero_warn(f"the cached token ids in {entry} are damaged and are made again: {fault}")
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _made(entry: Path, fill: Fill, what: str) -> Store:
    for left in entry.parent.glob(f"{entry.name}.*/"):  # left by a process that was killed: the lock is held
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
    try:
        writer = Writer(making)
        writer.finish(fill(writer))
        shutil.rmtree(entry, ignore_errors=True)
        making.rename(entry)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    store = Store(entry)
    rank_zero_info(f"{what}: token ids cached in {entry} ({store.size / 1e6:,.1f} MB); {VARIABLE}=off disables it")
    return store


def _temporary(fill: Fill) -> Store:
    owner = tempfile.TemporaryDirectory(prefix="instructlit-tokens-")
    folder = Path(owner.name)
    with explained(folder):
        writer = Writer(folder)
        writer.finish(fill(writer))
    return Store(folder, owner)


@cache
def _code() -> str:
    """Hash of the code that makes the ids: another release, or a change, makes them again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
