"""Taking secrets out of what is written down: saved configs, model cards, what loggers are told."""

import re
from typing import Any

REMOVED = "(removed)"

_NAME = re.compile(r"(^|[_-])(api_?key|key|token|secret|passwd|password|credentials?|auth|bearer)$", re.IGNORECASE)
_NO_SECRET = re.compile(
    r"(pad|padding|eos|bos|unk|sep|cls|mask|image|stop)_token$|^(sort|prompt|text|metric)_key$", re.IGNORECASE
)
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def without_secrets(value: Any) -> Any:
    """A copy of plain containers in which whatever is called a key, token, secret or password, or looks like one, is
    replaced by `REMOVED`."""
    if isinstance(value, dict):
        return {k: REMOVED if _is_secret(str(k), v) else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _VALUE.sub(REMOVED, value) if isinstance(value, str) else value


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and bool(_NAME.search(name)) and not _NO_SECRET.search(name)
