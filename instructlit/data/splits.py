"""Which prompts are held out. The choice is a function of the prompt (or user) alone: not of the seed, the order of
the rows or the other rows, so a prompt does not change sides when data is added, and all its labelers' rows stay
together. Only `held_out` moves one, if a side would otherwise be empty.
"""

import hashlib

import numpy as np

from instructlit.types import PromptText


def prompt_key(prompt: PromptText) -> str:
    """The text by which prompts are compared: a single user message counts as its text; outer whitespace is ignored."""
    if isinstance(prompt, str):
        return prompt.strip()
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"].strip()
    return "\x1e".join(f"{message['role']}\x1f{message['content'].strip()}" for message in prompt)


def hash64(text: str) -> int:
    """64 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def is_held_out(prompt: PromptText, fraction: float) -> bool:
    """Whether the prompt's hash, as a number between 0 and 1, is below `fraction`, regardless of the other prompts."""
    return hash64(prompt_key(prompt)) / 2.0**64 < fraction


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """True if the row belongs to validation.

    About `fraction` of the distinct keys are held out: those that, as a number between 0 and 1, are below it. If
    that is none of them, or all, the one key nearest to the threshold changes sides, as long as there are two.

    Args:
        keys: (rows,) uint64, hashes of the prompt, or of whatever must stay together.
        fraction: between 0 and 1; 0 holds nothing out.
    """
    if not fraction:
        return np.zeros(len(keys), dtype=bool)
    place = keys.astype(np.float64) / 2.0**64
    chosen = place < fraction
    if len(np.unique(keys)) > 1 and (chosen.all() or not chosen.any()):
        edge = place == (place.max() if chosen.all() else place.min())
        chosen = chosen ^ edge
    return chosen
