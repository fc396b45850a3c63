"""Progress of a pass over a lot of data: a bar in a terminal, otherwise one line per minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 60.0
_BAR_SECONDS = 0.2


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number done so far, out of `total`; a bar appears after two seconds.

    Args:
        what: what is being done, for messages.
        total: the number of units.
        unit: "rows", or "bytes", which are shown as megabytes.
    """
    name, scale = ("MB", 1e-6) if unit == "bytes" else (unit, 1.0)

    def told(done: int) -> str:
        return f"{done * scale:,.0f} of {total * scale:,.0f} {name}"

    terminal = sys.stderr.isatty() and getattr(rank_zero_only, "rank", 0) == 0
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=total, told=told(0))
    due = time.monotonic() + (2.0 if terminal else LINE_SECONDS)

    def show(done: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + (_BAR_SECONDS if terminal else LINE_SECONDS)
        if not terminal:
            rank_zero_info(f"{what}: {told(done)}, {done / max(total, 1):.0%}")
            return
        bar.start()
        bar.update(task, completed=done, told=told(done))

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
