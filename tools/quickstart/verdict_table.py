"""The verdict over several seeds as a table in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_verdict(whole: dict[str, Any]) -> None:
    """One row per seed, one column per criterion with the numbers behind it."""
    table = Table(title="what the quickstart must show, by seed")
    table.add_column("seed", justify="right")
    names = list(whole["runs"][0]["criteria"]) if whole["runs"] else []
    for name in names:
        table.add_column(name)
    table.add_column("all")
    for run in whole["runs"]:
        cells = [_cell(run["criteria"][name]["holds"], run["criteria"][name]["numbers"]) for name in names]
        table.add_row(str(run["seed"]), *cells, _cell(run["holds"], ""))
    Console().print(table)


def _cell(holds: bool, numbers: str) -> str:
    word = "[green]holds[/green]" if holds else "[red]fails[/red]"
    return f"{word} {numbers}".strip()
