"""Removes secrets from what is written: saved configs, model cards, what loggers receive."""

import re
from collections.abc import Sequence
from typing import Any

REMOVED = "(removed)"

_WORDS = r"api_?keys?|key|token|secrets?|passwd|(?:ssl)?passwords?|passphrases?|credentials?|auth|authorization|bearer"
_NAME = re.compile(rf"(^|[._-])({_WORDS})$", re.IGNORECASE)
_NO_SECRET = re.compile(
    r"(pad|padding|eos|bos|unk|sep|cls|mask|image|stop)_token$|(^|\.)(sort|prompt|text|metric)_key$", re.IGNORECASE
)
_MAY_BE_A_NUMBER = re.compile(r"passw|passphrase|secret", re.IGNORECASE)  # what is called a token may be an id
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|(?<=\bBearer )\S+"
    # user and password of a URL, up to its last @; a port has a path behind it
    r"|(?<=://)[^/\s:@]*:(?!\d*(?:/|$))\S*(?=@)"
)
_IN_QUERY = re.compile(rf"([?&](?:\w*[_-])?(?:{_WORDS})=)[^&#\s]+", re.IGNORECASE)


def without_secrets(value: Any) -> Any:
    """A copy of plain containers in which whatever is called a key, token, secret or password, or looks like one, is
    replaced by `REMOVED`."""
    if isinstance(value, dict):
        return {k: REMOVED if _is_secret(str(k), v) else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _IN_QUERY.sub(rf"\1{REMOVED}", _VALUE.sub(REMOVED, value)) if isinstance(value, str) else value


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line, `--option value` or `--option=value`, with the same replaced."""
    found, option = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") and equals and _is_secret(name, value):
            word = f"{name}={REMOVED}"
        elif not word.startswith("--") and option and _is_secret(option, word):
            word = REMOVED
        found.append(without_secrets(word))
        option = word if word.startswith("--") and not equals else ""
    return found


def _is_secret(name: str, value: Any) -> bool:
    if not _NAME.search(name) or _NO_SECRET.search(name) or not value:
        return False
    return isinstance(value, str | list | tuple) or (
        type(value) in (int, float) and bool(_MAY_BE_A_NUMBER.search(name))
    )
