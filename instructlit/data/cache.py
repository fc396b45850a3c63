"""Ids are made once: a store is kept under the hash of all it was made from, and found again by the next run.

The folder is `INSTRUCTLIT_CACHE`, by default `instructlit` in the user's cache folder; `INSTRUCTLIT_CACHE=off` keeps
nothing beyond the run. An entry is written beside its place and moved there when it is whole, so that no run meets half
of one. Tables are plain numbers and JSON: reading them runs no code.
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
"""Writes the tables of a store and gives its facts."""


def cache_folder() -> Path | None:
    """Where stores are kept; None where they are not."""
    told = os.environ.get(VARIABLE, "")
    if told.lower() in ("off", "0", "no", "false"):
        return None
    base = Path(told).expanduser() if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "instructlit"
    return base.expanduser().absolute() / "tokens"


def key_of(files: Sequence[Rows], how: Any) -> str | None:
    """The name of what is made from some files.

    Args:
        files: in order.
        how: all else that it depends on, as JSON knows it; None where that cannot be told.

    Returns:
        A hash, or None where `how` is None.
    """
    if how is None:
        return None
    sources = [
        [rows.sha256(), type(rows).__name__, Path(rows.path).suffix.lower(), *rows.source.identity] for rows in files
    ]
    return hashlib.sha256(json.dumps([_code(), sources, how], sort_keys=True).encode()).hexdigest()[:40]


def kept(key: str | None, fill: Fill, what: str) -> Store:
    """The store of that key, found or made.

    Args:
        key: as `key_of` gives it; None keeps nothing.
        fill: makes it.
        what: of what, for a person.

    Raises:
        UserError: from `fill`; no room for it anywhere.
    """
    folder = cache_folder()
    if key is None or folder is None:
        return _temporary(fill)
    entry = folder / key
    try:
        if (found := _found(entry)) is None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(folder / f"{key}.lock"):  # of several processes one makes it
                if (found := _found(entry)) is None:
                    return _made(entry, fill, what)
    except OSError as error:
        rank_zero_warn(f"{what}: nothing is kept in {folder} ({error.strerror}); the ids are made for this run alone")
        return _temporary(fill)
    rank_zero_info(f"{what}: ids of an earlier run, {entry}")
    return found


def _found(entry: Path) -> Store | None:
    """The store at `entry`, if there is one and it is whole; a broken one is removed."""
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
    rank_zero_warn(f"the ids kept in {entry} are damaged and are made anew: {fault}")
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _made(entry: Path, fill: Fill, what: str) -> Store:
    for left in entry.parent.glob(f"{entry.name}.*/"):  # by a process that was killed: who holds the lock is alone
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
    rank_zero_info(f"{what}: ids kept in {entry} ({store.size / 1e6:,.1f} MB); {VARIABLE}=off keeps none")
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
    """Hash of the code that makes ids: another release, or a change, makes them anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
