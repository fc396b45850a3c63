"""Inputs of several commands: policies with their temperatures, files of prompts."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

from instructlit.data.readers import open_source
from instructlit.data.records import prompts_of
from instructlit.data.sources import Source
from instructlit.data.splits import prompt_key
from instructlit.errors import UserError
from instructlit.types import Prompt


def parse_source(text: str) -> tuple[str, float]:
    """`models/sft@1.3` as folder and temperature.

    Raises:
        UserError: if what follows the last `@` is not a finite number above 0.
    """
    folder, at, temperature = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        value = float(temperature)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(
            f"{temperature!r} is not a temperature", where=f"--policies {text}", expected="FOLDER or FOLDER@TEMPERATURE"
        )
    return folder, value


def source_name(folder: str, temperature: float) -> str:
    """The inverse of `parse_source`: the folder, with `@` and the temperature if that is not 1 or the folder's own name
    contains an `@`.
    """
    return folder if temperature == 1.0 and "@" not in folder else f"{folder}@{temperature:g}"


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 (hex) of the texts of prompts, in their order."""
    text = "\x00".join(prompt_key(prompt.prompt) for prompt in prompts)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_prompts(files: Sequence[str]) -> Iterator[tuple[str, Prompt]]:
    """Each prompt of files in any format that training reads, with its location.

    Raises:
        UserError: if a file or row cannot be read.
    """
    return prompts_of([rows for name in files for rows in open_source(Source(name), "prompts")])
