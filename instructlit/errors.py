"""The one kind of error a user is meant to read: what is wrong, where, what was expected, what to do."""

import difflib
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Literal
from urllib.parse import urlsplit


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
    """Whether what was learnt is already on disk, so that nothing has to be rescued."""
    told = False
    """Whether it was already printed to stderr."""
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

    def at(self, where: str) -> "UserError":
        """The same error at another place."""
        there = UserError(self.what, where=where, expected=self.expected, fix=self.fix)
        there.on_all_ranks, there.saved = self.on_all_ranks, self.saved
        there.told, there.status = self.told, self.status
        return there


class Ending(SystemExit):
    """Leaves a command with a status of ours, in all its processes alike. Any other SystemExit comes from code that the
    command calls, such as a callback's `exit(0)`, and ends it before it is done."""


def is_ending(error: BaseException) -> bool:
    """Whether a SystemExit is ours or Lightning's after SIGTERM; by name, so that it need not be imported here."""
    return isinstance(error, Ending) or type(error).__name__ == "SIGTERMException"


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, the members of it if it is a group, and all that it was raised from, each once."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)
        waiting.extend(
            e for e in (current.__cause__, None if current.__suppress_context__ else current.__context__) if e
        )


def first_line(error: BaseException) -> str:
    """The first line of another library's error; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def raised_at(error: BaseException, kind: type) -> str:
    """File and line of the code of a class's own module that an error came through; else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    home = getattr(sys.modules.get(kind.__module__), "__file__", None)
    frame = ([f for f in frames if f.filename == home] or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def class_path(kind: type) -> str:
    """How a config names a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def pickled_kind(error: BaseException) -> str | None:
    """What keeps a pickle from being read as data, as torch and `ShardReader` name it; None if they do not."""
    found = re.search(r"(?:GLOBAL|it holds) ([\w.]+)", str(error))
    return found[1] if found else None


def is_lightnings_refusal(error: BaseException) -> bool:
    """Whether Lightning refuses the options it was given; by names, so that it need not be imported here."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    innermost = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    return isinstance(error, (RuntimeError, ValueError)) and any(name.startswith("lightning.") for name in innermost)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where nothing is close: for "did you mean" hints."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def counted(count: int, noun: str, many: str | None = None) -> str:
    """`1 prompt`, `2,000 prompts`; `many` where the plural has more than an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


_EXTRAS = {
    "wandb": ("wandb",),
    "8bit": ("bitsandbytes",),
    "eval": ("detoxify", "immutabledict", "langdetect", "lm_eval", "nltk"),
    "label": ("alembic", "fastapi", "jinja2", "markdown_it", "python_multipart", "sqlalchemy", "starlette", "uvicorn"),
    "postgres": ("psycopg",),
}


def extra_of(module: str) -> str | None:
    """How to install the package of a module, if it comes with one of our extras."""
    package = module.partition(".")[0]
    return next((f"pip install 'instructlit[{extra}]'" for extra, held in _EXTRAS.items() if package in held), None)


def not_installed(error: ModuleNotFoundError, where: str | None = None, otherwise: str = "") -> UserError:
    """The error for a package that is not installed, with the alternative to installing it."""
    ways = [way for way in (extra_of(error.name or ""), otherwise) if way]
    return UserError(f"{error.name} is not installed", where=where, fix=", or ".join(ways) or None)


Range = Literal[
    "a whole number above 0",
    "a whole number, 0 or more",
    "a number above 0",
    "a finite number above 0",
    "a finite number, 0 or more",
    "a finite number",
    "a number from 0 to 1",
    "a number of at least 0 and below 1",
    "a seed, from 0 to 4294967295",
]
_HOLDS: dict[Range, Callable[[float], bool]] = {  # NaN is in none of them, since no comparison with it holds
    "a whole number above 0": lambda x: x >= 1,
    "a whole number, 0 or more": lambda x: x >= 0,
    "a number above 0": lambda x: x > 0,
    "a finite number above 0": lambda x: 0 < x < math.inf,
    "a finite number, 0 or more": lambda x: 0 <= x < math.inf,
    "a finite number": lambda x: -math.inf < x < math.inf,
    "a number from 0 to 1": lambda x: 0 <= x <= 1,
    "a number of at least 0 and below 1": lambda x: 0 <= x < 1,
    "a seed, from 0 to 4294967295": lambda x: 0 <= x < 2**32,  # what numpy takes
}


def require(expected: Range, where: str = "", /, **options: float | None) -> None:
    """Refuse options that are out of range. None, which switches an option off, is in every range.

    Args:
        expected: the range, in the words of the message.
        where: the prefix of an option's name in the config, such as `model.init_args.`.
        options: the values, under the names of their options.

    Raises:
        UserError: for the first that is out of range.
    """
    for name, value in options.items():
        if value is not None and not _HOLDS[expected](value):
            raise UserError(f"found {value}", where=f"{where}{name}", expected=expected)


def require_address(where: str = "", /, **options: str) -> None:
    """Refuse options that are not the address of a web service.

    Args:
        where: the prefix of an option's name in the config, such as `judge.`.
        options: the addresses, under the names of their options.

    Raises:
        UserError: for the first that is not.
    """
    for name, value in options.items():
        if not _is_address(value):
            raise UserError(
                f"{value} is not a web address", where=f"{where}{name}", expected="http://HOST:PORT or https://HOST"
            )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # read for its error
    except ValueError:  # a bracket that is not closed, a port that is not a number
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(c.isspace() for c in text)
