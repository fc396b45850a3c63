"""Prompt hygiene as in InstructGPT (Ouyang et al. 2022, section 3.2 and appendix A.3): near duplicates by a long common
prefix, a cap on the prompts of one user, and a filter for personal data. Works on hashes, so no prompt is kept in
memory.
"""

import ipaddress
import re

import numpy as np

from instructlit.data.splits import hash64
from instructlit.types import PromptText

_BLANKS = re.compile(r"\s+")


def prefix_hash(prompt: PromptText, characters: int) -> int:
    """Hash of a prompt's prefix: near duplicates share it.

    The prefix has `characters` characters, doubled as often as the prompt's length allows, so that the shared part is
    more than half of the prompt; a shorter prompt is hashed whole. Letter case, runs of whitespace and system messages
    (which are often the same in a whole dataset) are ignored.
    """
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt if m["role"] != "system")
    folded = _BLANKS.sub(" ", text).strip().casefold()
    length = characters
    while 2 * length <= len(folded):
        length *= 2
    return hash64(folded[:length] if len(folded) >= length else f"{folded}\0")


def repeats(hashes: np.ndarray) -> np.ndarray:
    """True for every row whose hash occurred in an earlier row; (rows,) uint64 to bool."""
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), dtype=bool)
    again[first] = False
    return again


def over_cap(users: np.ndarray, counted: np.ndarray, cap: int) -> np.ndarray:
    """True for the rows of a user beyond the first `cap` of those `counted`.

    Args:
        users: (rows,) uint64, 0 if the row names no user; such rows are never capped.
        counted: (rows,) bool, rows not yet dropped.
        cap: maximum number of rows per user.
    """
    over = np.zeros(len(users), dtype=bool)
    rows = np.flatnonzero(counted & (users != 0))
    order = rows[np.argsort(users[rows], kind="stable")]
    sorted_users = users[order]
    position = np.arange(len(order)) - np.searchsorted(sorted_users, sorted_users, side="left")
    over[order[position >= cap]] = True
    return over


def personal_data(text: str) -> str | None:
    """The kind of personal data in a text, or None. A filter, not a guarantee: names and addresses are not found."""
    for kind, pattern, holds in _PATTERNS:
        if any(holds(match.group()) for match in pattern.finditer(text)):
            return kind
    return None


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(text: str) -> bool:
    """Luhn's check: from the right, every second digit doubled, digits summed, divisible by ten."""
    digits = [int(d) for d in reversed(_digits(text))]
    doubled = sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits))
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and doubled % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: country and check digits moved to the end, letters as numbers, remainder 1 modulo 97."""
    packed = text.replace(" ", "")
    return 15 <= len(packed) <= 34 and int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_reserved


def _is_phone(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 15


_PATTERNS = (
    ("e-mail address", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), lambda found: True),
    ("bank account", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    ("card number", re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.])"), _is_card),
    (
        "social security number",
        re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
        lambda found: True,
    ),
    ("IP address", re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w.:])"), _is_address),
    ("IP address", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"), _is_address),
    (
        "phone number",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\w])"
        ),
        _is_phone,
    ),
)
