"""What a model or a file of a stranger says commands no terminal."""

import io
import sys

import pytest
from rich.console import Console

from instructlit.cli.errors import report
from instructlit.errors import UserError
from instructlit.terminal import harmless
from instructlit.tools.chat import _shown

CLIPBOARD = "a\x1b]52;c;ZXZpbA==\x07b"  # asks a terminal to put something else into the clipboard


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_and_text_stays_as_it_is() -> None:
    assert harmless(CLIPBOARD) == "a␛]52;c;ZXZpbA==␇b"
    assert harmless("\x9b31m\x7f\r\b") == "\ufffd31m␡␍␈"
    for text in ("one\ttwo\n", "naïve 日本語 👩‍🔬", ""):
        assert harmless(text) == text
    assert harmless("one\r\ntwo") == "one\ntwo"


@pytest.mark.parametrize("at_terminal", [True, False], ids=["typed", "piped"])
def test_an_answer_reaches_a_terminal_as_text(monkeypatch: pytest.MonkeyPatch, at_terminal: bool) -> None:
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    said = _shown(iter(["hi ", CLIPBOARD]), Console(highlight=False, no_color=True) if at_terminal else None)
    assert said == f"hi {CLIPBOARD}"  # what is kept and saved is the answer
    assert "\x1b]52" not in screen.getvalue()
    assert "hi a␛]52;" in screen.getvalue()


def test_an_answer_reaches_a_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    _shown(iter([CLIPBOARD]), None)
    assert file.getvalue() == f"{CLIPBOARD}\n"


def test_a_message_that_quotes_a_file_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    report(UserError(f"not JSON: {CLIPBOARD}", where="rows.jsonl:1"))
    assert capsys.readouterr().err == f"instructlit: rows.jsonl:1: not JSON: {harmless(CLIPBOARD)}\n"
