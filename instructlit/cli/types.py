"""What a typed signature says, in the words a user needs: its parameters, the classes it admits, its types."""

import collections.abc
import dataclasses
import enum
import functools
import importlib
import inspect
import operator
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from instructlit.errors import UserError, extra_of, nearest

_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PLAIN = (str, int, float, bool, complex, bytes, timedelta, type(None), object)
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    timedelta: 'a duration in quotes, such as "1:30:00"',
    Path: "a path",
    dict: "a mapping",
    list: "a list",
    Any: "anything",
}


class Parameter(NamedTuple):
    """One argument of a class or function."""

    hint: Any
    required: bool


@functools.cache
def parameters(component: Callable[..., Any]) -> dict[str, Parameter] | None:
    """The arguments `component` takes, those it passes on through **kwargs included; None where they are unknown."""
    try:
        from jsonargparse._parameter_resolvers import get_signature_parameters

        found = get_signature_parameters(component, None, logger=False)
    except Exception:
        try:
            found = list(inspect.signature(component).parameters.values())
        except (TypeError, ValueError):
            return None
    kinds = inspect.Parameter
    named = [p for p in found if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    if any(p.kind is kinds.VAR_KEYWORD for p in found):
        return None
    hints = {p.name: Union[p.annotation, None] if p.default is None else p.annotation for p in named}  # noqa: UP007
    return {p.name: Parameter(hints[p.name], p.default is kinds.empty) for p in named}


def members(hint: Any) -> list[Any]:
    """The alternatives of a union, with Annotated taken off; `[hint]` for anything else."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [m for arg in get_args(hint) for m in members(arg)]
    if type(hint).__name__ == "TypeAliasType":
        return members(hint.__value__)
    return [hint]


def dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses among the alternatives of `hint`: their keys stand in a config without a class_path."""
    return [m for m in members(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)]


def classes_of(hint: Any) -> list[type]:
    """The classes a `class_path` may name for `hint`: those in it and those that a Callable in it returns."""
    found: list[type] = []
    for member in members(hint):
        if get_origin(member) is collections.abc.Callable:
            arguments = get_args(member)
            found += classes_of(arguments[1]) if len(arguments) == 2 else []
        elif isinstance(member, type) and not _is_plain(member):
            found.append(member)
    return found


def has_callable(hint: Any) -> bool:
    """True where `hint` admits what makes an object only when it is called, such as an optimiser from parameters."""
    return any(get_origin(member) is collections.abc.Callable for member in members(hint))


def takes_words(hint: Any) -> bool:
    """True where a bare word in a config is a value and not the name of a class."""
    return any(m in (str, int, float) or get_origin(m) is Literal or _is_enum(m) or is_open(m) for m in members(hint))


def elements_of(hint: Any) -> Any | None:
    """The type of a list's elements where `hint` admits a list of any length, else None."""
    inner = [get_args(m)[0] for m in members(hint) if get_origin(m) in _LISTS and get_args(m)]
    if any(get_origin(m) is tuple and Ellipsis not in get_args(m) for m in members(hint)):
        return None
    return functools.reduce(operator.or_, inner) if inner else None


def is_open(hint: Any) -> bool:
    """True where `hint` admits any mapping, so that keys below it cannot be checked."""
    return takes_anything(hint) or any(m in _MAPPINGS or get_origin(m) in _MAPPINGS for m in members(hint))


def takes_anything(hint: Any) -> bool:
    """True where `hint` admits every value."""
    return any(m in (Any, inspect.Parameter.empty, object) or isinstance(m, TypeVar) for m in members(hint))


def admits_null(hint: Any) -> bool:
    """True where `hint` admits null."""
    literals = [arg for m in members(hint) if get_origin(m) is Literal for arg in get_args(m)]
    return is_open(hint) or None in literals or type(None) in members(hint)


def import_class(path: str, wanted: list[type], where: str) -> Any:
    """What `class_path: path` names.

    A bare name means a class that is already imported and fits, as jsonargparse has it.

    Raises:
        UserError: no such module, no such name in it, or not one of the `wanted` classes.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        found = [c for base in wanted for c in _subclasses(base) if c.__name__ == path]
        if found:
            return found[0]
        known: dict[str, str] = {}
        for candidate in (c for base in wanted for c in _subclasses(base)):
            known.setdefault(
                candidate.__name__, f"{candidate.__module__}.{candidate.__name__}"
            )  # torch's own come first
        near = nearest(path, known)
        raise UserError(
            f"`{path}` is not a known class name",
            where=where,
            expected=f"did you mean {known[near]}?" if near else "the full import path, package.module.Class",
        )
    module = _import_module(module_name, path, where)
    if not hasattr(module, name):
        names = [n for n in dir(module) if not n.startswith("_")]
        near = nearest(name, names)
        raise UserError(
            f"`{module_name}` has no `{name}`",
            where=where,
            expected=f"did you mean {module_name}.{near}?" if near else None,
        )
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"{path} is not a class", where=where, expected="the full import path, package.module.Class")
    if isinstance(found, type) and wanted and not issubclass(found, tuple(wanted)):
        names = " or ".join(f"{c.__module__}.{c.__name__}" for c in wanted)
        raise UserError(
            f"{path} is not derived from {wanted[0].__name__}", where=where, expected=f"a class derived from {names}"
        )
    if wanted and inspect.isabstract(found):
        lacking = ", ".join(f"`{method}`" for method in sorted(found.__abstractmethods__))
        raise UserError(
            f"{path} has no {lacking}", where=where, expected="a class that defines what its base class leaves to it"
        )
    if wanted and inspect.isfunction(found) and not _returns(found, tuple(wanted)):
        raise UserError(
            f"{path} is a function",
            where=where,
            expected=f"a class derived from {wanted[0].__module__}.{wanted[0].__name__}",
        )
    return found


def _returns(function: Callable[..., Any], wanted: tuple[type, ...]) -> bool:
    """Whether a function says that it makes one of the `wanted`, and so may stand for a class."""
    try:
        hint = get_type_hints(function).get("return")
    except Exception:  # a name that is not there, say
        return True
    return any(isinstance(m, type) and issubclass(m, wanted) for m in members(hint))


def describe(hint: Any) -> str:
    """`hint` in words: "a number or null", "one of nf4, int8"."""
    words = [_describe(m) for m in members(hint) if getattr(m, "__name__", "") != "Tensor"]
    return " or ".join(dict.fromkeys(words))


def suggest(value: Any, hint: Any) -> str | None:
    """The choice in `hint` that `value` was probably meant to be."""
    choices = [str(a) for m in members(hint) if get_origin(m) is Literal for a in get_args(m)]
    choices += [e.name for m in members(hint) if _is_enum(m) for e in m]
    return nearest(str(value), choices)


def _describe(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of ({', '.join(map(describe, arguments))})"
    if origin in _LISTS:
        inner = describe(arguments[0]) if arguments else ""
        return f"a list of ({inner})" if " or " in inner else f"a list of {inner}".removesuffix(" of ")
    if origin in _MAPPINGS:
        return "a mapping"
    if origin is collections.abc.Callable:
        return " or ".join(f"a class_path of {c.__name__}" for c in classes_of(hint)) or "a class_path"
    if _is_enum(hint):
        return "one of " + ", ".join(e.name for e in hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"the keys of {hint.__name__} ({', '.join(f.name for f in dataclasses.fields(hint))})"
    if hint is inspect.Parameter.empty:
        return "anything"
    if isinstance(hint, type):
        return f"a class_path of {hint.__name__}"
    return str(hint)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _is_plain(kind: type) -> bool:
    return (
        kind in _PLAIN
        or kind in _MAPPINGS
        or kind in _LISTS
        or issubclass(kind, (enum.Enum, Path))
        or dataclasses.is_dataclass(kind)
        or kind.__module__.startswith("jsonargparse")
        or kind.__name__ == "Tensor"  # `lr: float | Tensor`: nobody writes a tensor in YAML
    )


def _subclasses(base: type) -> list[type]:
    return [base, *(inner for child in base.__subclasses__() for inner in _subclasses(child))]


def _import_module(name: str, path: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise  # the module exists, but something that it imports does not: its own message says what
        parent, _, _leaf = missing.rpartition(".")
        raise UserError(
            f"there is no module `{missing}` for class_path `{path}`",
            where=where,
            expected=_near_module(missing, parent),
            fix=extra_of(missing) or "run from the folder that holds your own module, or install its package",
        ) from error
    except (Exception, SystemExit) as error:  # a script's exit would end the command with status 0 and no message
        raise UserError(
            f"`{name}` cannot be imported: {type(error).__name__}: {error}",
            where=where,
            expected=f"a module that defines `{path.rpartition('.')[2]}`; what it does as a script goes under "
            '`if __name__ == "__main__":`',
            fix="INSTRUCTLIT_DEBUG=1 shows where it failed",
        ) from error


def _near_module(missing: str, parent: str) -> str | None:
    import pkgutil
    import sys

    try:
        paths = importlib.import_module(parent).__path__ if parent else None
    except (ImportError, AttributeError):
        return None
    names = [m.name for m in pkgutil.iter_modules(paths)] + ([] if parent else list(sys.builtin_module_names))
    near = nearest(missing.rpartition(".")[2], names)
    return f"did you mean {f'{parent}.' if parent else ''}{near}?" if near else None
