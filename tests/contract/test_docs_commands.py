"""Every `instructlit …` command that a page shows is one the program accepts, configs and options included."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from instructlit.cli import COMMANDS, LIGHTNING, split_command
from instructlit.cli.config import find, read, split
from instructlit.cli.fit import check, composed
from instructlit.cli.tools import assign
from instructlit.cli.tools import check as check_tool

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = re.compile(r"…|<\w+>|\b[A-Z]{4,}\b|\bpackage\.|\bmy[-_.]|\byour")


def commands(text: str) -> list[str]:
    """The commands in the code blocks of a page, continued lines joined, explanations after two blanks cut."""
    found = []
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^(\$ |[A-Z_]+=\S+ )+", "", line.strip())
            if line.startswith("instructlit ") and not PLACEHOLDERS.search(line):
                joined = re.sub(r"\s+(?=--)", " ", line)
                found.append(re.split(r"\s{2,}|\s#", joined)[0])
    return found


SHOWN = [pytest.param(c, id=f"{p.name}: {c[:60]}") for p in PAGES for c in commands(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("command", SHOWN)
def test_a_shown_command_is_accepted(command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version")
        return
    name, rest = split_command(words)
    if "--help" in rest:
        return
    target = COMMANDS[name][0]
    if target == LIGHTNING:
        files, options = split(rest)
        if all(_exists(file) for file in files) and not any(".help" in o for o in options):
            check(name, composed([read(file) for file in files]), _without_checkpoint(options))
        return
    module, function = target.split(":")
    tool = getattr(importlib.import_module(module), function)
    check_tool(tool, name, assign(tool, rest))


def test_pages_show_commands() -> None:
    assert len(SHOWN) >= 3


def _exists(file: str) -> bool:
    """True for a shipped config; a config that an earlier command of the page wrote cannot be read here."""
    if file.startswith("configs/"):
        assert find(file).is_file()
        return True
    return False


def _without_checkpoint(options: list[str]) -> list[str]:
    """The options without --ckpt_path, whose file is of a run that has not been."""
    kept, skip = [], False
    for word in options:
        if skip:
            skip = False
        elif word == "--ckpt_path":
            skip = True
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return kept
