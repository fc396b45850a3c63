"""Untrusted text for a terminal, which takes some characters as commands: to clear the screen, write over it, fill the
clipboard."""

import re

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but a tab and a line's end
_PICTURES = 0x2400
"""Unicode has a picture of each of the first 32 control characters from here on."""


def harmless(text: str) -> str:
    """`text` with pictures in place of control characters; a CR before a line's end is dropped."""
    return _COMMANDS.sub(_picture, text.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(_PICTURES + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
