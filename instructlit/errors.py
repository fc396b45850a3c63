"""The one kind of error a user is meant to read: what is wrong, where, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config, a file or a command line, told in one message and never shown with a stack trace.

    Args:
        what: the fault, in one sentence, naming the value found.
        where: the place it was found: an option, or `file:line: field`.
        expected: what would have been right.
        fix: what to do about it.
    """

    on_all_ranks = False
    """Whether every process of the run raises it, at the same place: then they can still do things together."""
    saved = False
    """Whether what was learnt is on disk already, so that nothing has to be rescued."""
    told = False
    """Whether it stands on stderr already."""
    status = 2
    """Exit status of the command that it ends."""

    def __init__(self, what: str, *, where: str | None = None, expected: str | None = None, fix: str | None = None):
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        lines = [f"{where}: {what}" if where else what]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  to do: {fix}")
        super().__init__("\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where nothing is close: for "did you mean" hints."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
