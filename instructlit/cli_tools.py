"""The commands beside `fit`: a plain function becomes a command line, its docstring the help.

A function is called from the shell as it is from Python: parameters before the `*` may be given by position or by name,
those after it by name only; a list takes as many words as follow it; a switch alone means true.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from instructlit.errors import UserError, nearest


def run(function: Callable[..., Any], name: str, args: Sequence[str]) -> int:
    """Call `function` with the options in `args`; its return value, where it is an int, is the exit status."""
    parser = ArgumentParser(prog=f"instructlit {name}", description=inspect.getdoc(function), exit_on_error=False)
    parser.add_function_arguments(function, as_group=False, fail_untyped=True)
    options = parser.instantiate(parser.parse_args(list(args)))
    status = function(**options.as_dict())
    return status if isinstance(status, int) else 0
