"""An estimate for people to read: a table of phases, and what to change."""

import re
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from instructlit.errors import UserError
from instructlit.memory.advice import Change
from instructlit.memory.estimate import Estimate

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parsed_size(text: str, where: str) -> int:
    """Bytes of `24GiB`, `24G` (both 2**30) or `24GB` (10**9).

    Raises:
        UserError: not a number, or another unit.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    if found is None or found[1].count(".") > 1 or not found[1].strip("."):
        raise UserError(f"{text!r} is not a size", where=where, expected="a size such as 24GiB or 80GB")
    unit = found[2].upper()
    decimal = (found[3] or "").upper() == "B"
    return int(float(found[1]) * (1000 ** list(UNITS).index(unit) if decimal else UNITS[unit]))


def shown(size: int) -> str:
    """`size` in GiB, or MiB where it is small."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"


def table(found: Estimate) -> Table:
    """One column for each phase, one row for each purpose, the largest phase in bold."""
    run = found.run
    per = f", each of {run.devices} devices ({run.strategy})" if run.devices > 1 else ""
    result = Table(title=f"{run.stage}: {run.rows} x {run.length} tokens in a forward pass{per}", title_justify="left")
    result.add_column("")
    for phase in found.phases:
        result.add_column(phase.name, justify="right", style="bold" if phase is found.largest else "")
    for name, size in found.held.items():
        if size:
            result.add_row(name, *[shown(size)] * len(found.phases))
    result.add_section()
    for name in dict.fromkeys(name for phase in found.phases for name in phase.parts):
        cells = [phase.parts.get(name, 0) for phase in found.phases]
        if any(cells):
            result.add_row(name, *[shown(cell) if cell else "" for cell in cells])
    result.add_section()
    result.add_row("total", *[shown(found.total(phase)) for phase in found.phases], style="bold")
    return result


def lines(changes: Sequence[Change]) -> list[str]:
    """Each change with the peak after it."""
    return [f"  {change.setting}  ->  {shown(change.after.peak)}" for change in changes]


def as_text(found: Estimate, width: int = 140) -> str:
    """The table without colours, for a message."""
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table(found))
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
