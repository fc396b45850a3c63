"""The commands other than `fit`: a plain function becomes a command line, its docstring the help.

A function is called from the shell as it is from Python: parameters before the `*` may be given by position or by name,
those after it by name only. A list takes all the words that follow it, and a switch alone means true.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from instructlit.cli.check import unfit, unknown
from instructlit.cli.making import fault_of
from instructlit.cli.types import (
    Parameter,
    classes_of,
    dataclasses_of,
    describe,
    elements_of,
    is_open,
    members,
    parameters,
)
from instructlit.errors import UserError


def run(function: Callable[..., Any], name: str, args: Sequence[str]) -> int:
    """Call `function` with the options in `args`; its return value, where it is an int, is the exit status."""
    parser = parser_for(function, name)
    if any(word in ("-h", "--help") for word in args):
        parser.print_help()
        return 0
    given = assign(function, args)
    check(function, name, given)
    words = [f"--{option}={word}" for option, word in given.items()]
    try:
        options: Any = parser.instantiate(parser.parse_args(words))
    except Exception as error:
        if (fault := fault_of(error)) is not None:
            raise fault from error
        if "Parser key" not in str(error):
            raise
        raise UserError(str(error), where=f"instructlit {name}") from error
    status = function(**options.as_dict())
    return status if isinstance(status, int) else 0


def parser_for(function: Callable[..., Any], name: str) -> ArgumentParser:
    """The parser of one command; every parameter must have a type."""
    summary = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    parser = ArgumentParser(
        prog=f"instructlit {name}", description=summary, epilog=_by_position(function, name), exit_on_error=False
    )
    parser.add_function_arguments(function, as_group=False, fail_untyped=True)
    return parser


def assign(function: Callable[..., Any], args: Sequence[str]) -> dict[str, str]:
    """Each parameter's text on the command line: lists as JSON, a bare switch as "true"."""
    params = parameters(function) or {}
    places = _places(function)
    given: dict[str, str] = {}
    words = list(args)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            option, equals, text = word[2:].partition("=")
            option, parameter = known(option.replace("-", "_"), params)
            followers = [text] if equals else _taken(words, parameter)
        else:
            free = [n for n in places if n not in given]
            if not free:
                raise UserError(f"unexpected argument `{word}`", expected=_usage(params))
            option, parameter = free[0], params[free[0]]
            followers = [word, *_taken(words, parameter)] if _is_list(parameter) else [word]
        given[option] = _text(option, followers, parameter, given.get(option))
    return given


def _places(function: Callable[..., Any]) -> list[str]:
    """The parameters that may be given by position, in order."""
    kinds = inspect.signature(function).parameters
    return [n for n in parameters(function) or {} if kinds[n].kind is not inspect.Parameter.KEYWORD_ONLY]


def _by_position(function: Callable[..., Any], name: str) -> str | None:
    """The last line of `--help`, which argparse cannot write: what may be given by position, up to a list, which takes
    all words that follow."""
    params, words = parameters(function) or {}, list[str]()
    for place in _places(function):
        words.append(f"{place.upper()} ..." if _is_list(params[place]) else place.upper())
        if _is_list(params[place]):
            break
    return f"May also be given by position, in this order: instructlit {name} {' '.join(words)}" if words else None


def check(function: Callable[..., Any], name: str, given: dict[str, str]) -> None:
    """Raise UserError for a parameter that is missing or whose text is not of its type."""
    params = parameters(function) or {}
    for option, text in given.items():
        hint = known(option, params)[1].hint
        if is_open(hint) or classes_of(hint) or dataclasses_of(hint):
            continue
        if problem := unfit(text, hint, f"--{option}", text=True):
            raise problem
    for option, parameter in params.items():
        if parameter.required and option not in {word.partition(".")[0] for word in given}:
            raise UserError(
                "is required but not given",
                where=f"--{option}",
                expected=describe(parameter.hint),
                fix=f"`instructlit {name} --help` lists the options",
            )


def known(option: str, params: dict[str, Parameter], owner: str = "") -> tuple[str, Parameter]:
    """The option and its parameter; `--sizes.corpus` reaches into a dataclass."""
    name, _, rest = option.partition(".")
    listed = name.removesuffix("+")
    if listed in params and _is_list(params[listed]):  # `--files+` as --help has it; either way the words are added
        name = option = listed
    if name not in params:
        raise unknown(name, params, None, prefix=f"--{owner}")
    records = dataclasses_of(params[name].hint)
    if rest and records:
        inner, parameter = known(rest, parameters(records[0]) or {}, f"{owner}{name}.")
        return f"{name}.{inner}", parameter
    return option, params[name]


def _taken(words: list[str], parameter: Parameter) -> list[str]:
    """Take from `words` what belongs to the option before them."""
    if _is_list(parameter):
        count = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    elif words and not words[0].startswith("--"):
        is_switch = bool in members(parameter.hint) and words[0].lower() not in ("true", "false", "null", "yes", "no")
        count = 0 if is_switch else 1
    else:
        count = 0
    taken = words[:count]
    del words[:count]
    return taken


def _text(option: str, words: list[str], parameter: Parameter, before: str | None) -> str:
    if _is_list(parameter):
        if len(words) == 1 and words[0].startswith("["):
            return words[0]
        return json.dumps([*(json.loads(before) if before else []), *words])
    if words:
        return words[0]
    if bool in members(parameter.hint):
        return "true"
    raise UserError("needs a value", where=f"--{option}", expected=describe(parameter.hint))


def _is_list(parameter: Parameter) -> bool:
    return elements_of(parameter.hint) is not None


def _usage(params: dict[str, Parameter]) -> str:
    return "one of " + ", ".join(f"--{name}" for name in params)
