"""What completions and ratings are called in the formats of other tools."""

import re
from collections.abc import Sequence

COMPLETION = re.compile(r"(?:completion|response)_\d+")


def completion_names(completions: Sequence[str]) -> list[str]:
    """`completion_1` and so on."""
    return [f"completion_{number}" for number in range(1, len(completions) + 1)]


def rating_name(completion: str) -> str:
    """The question that rates a completion: `rating_2` for `completion_2`."""
    return f"rating_{completion.rpartition('_')[2]}"
