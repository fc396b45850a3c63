"""Text of strangers for a terminal, which takes some characters for commands: to clear what stands there, to write
something else over it, to fill the clipboard."""

import re

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but a tab and a line's end
_PICTURES = 0x2400
"""Unicode has a picture of each of the first 32 control characters from here on."""


def harmless(text: str) -> str:
    """`text` with pictures in the place of control characters; a line's end with CR is one without."""
    return _COMMANDS.sub(_picture, text.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(_PICTURES + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
