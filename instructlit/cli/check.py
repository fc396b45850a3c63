"""Checking a composed config against the signatures it will be given to, before anything is built.

jsonargparse refuses the same mistakes, but answers a typo anywhere below a union with every alternative that did not
fit. Here the config is walked next to the types, so that the message is about the one value that is wrong.
"""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from instructlit.cli.config import Config, Key, plain
from instructlit.cli.types import (
    Parameter,
    admits_null,
    classes_of,
    dataclasses_of,
    describe,
    elements_of,
    has_callable,
    import_class,
    is_open,
    members,
    parameters,
    suggest,
    takes_anything,
    takes_words,
)
from instructlit.errors import UserError, nearest

SPEC = ("class_path", "init_args", "dict_kwargs")
LATER = ("params", "optimizer")  # first arguments of optimisers and schedules, which the module gives
FILES = (".yaml", ".yml", ".json")


class Checker:
    """Walks one config.

    Args:
        config: the composed config.
        options: the top-level keys and their types; `groups` among them take their arguments without a class_path.
        groups: top-level keys whose class is fixed, such as the Trainer.
        given: keys set on the command line, which therefore are not missing.
    """

    def __init__(
        self, config: Config, options: dict[str, Parameter], groups: dict[str, type], given: Iterable[Key] = ()
    ):
        self.config, self.options, self.groups = config, options, groups
        self.given = [plain(key) for key in given]
        self.on_line: dict[Key, str | None] = {}  # what the command line sets: the class that it appends to a list

    def check(self) -> None:
        """Raise UserError at the first key or value that is wrong."""
        self._keys(self.config.values, self.options, ())

    def check_option(self, name: str, value: str | None) -> Key | None:
        """Check one command-line option: every part of its dotted name, and its value where the type is plain.

        Returns:
            The key whose class the option sets, None for any other option.
        """
        key, hint = self._resolve(name)
        if value is None or hint is None:
            return None
        if value == "null" and (problem := unfit(None, hint, f"--{name}")):
            raise problem
        self.on_line[key] = None
        if key[-1] == "class_path" or (classes_of(hint) and not value.lstrip().startswith(("{", "["))):
            number = takes_words(hint) and not all(part.isidentifier() for part in value.split("."))  # such as 0.25
            if "." not in value or value.endswith(FILES) or number:
                return None
            import_class(value, classes_of(hint), f"--{name}")
            if name.endswith("+"):
                self.on_line[key] = value
                return None
            return key[:-1] if key[-1] == "class_path" else key
        if not is_open(hint) and not classes_of(hint) and (problem := unfit(value, hint, f"--{name}", text=True)):
            raise problem
        return None

    def _resolve(self, name: str) -> tuple[Key, Any]:
        """The full key and the type of a dotted option; the type is None where it is unknown."""
        params: dict[str, Parameter] | None = self.options
        key: tuple[str, ...] = ()
        hint: Any = None
        for part in name.rstrip("+").split("."):
            if part in SPEC and key and ".".join(key) not in self.groups:
                key = (*key, part)
                if part == "dict_kwargs":
                    return key, None
                continue
            if elements_of(hint) is not None and (path := self._last_class(key)) is not None:
                return self._in_list(name, part, key, path, classes_of(elements_of(hint)))
            if params is None or part.isdigit():
                return (*key, part), None
            if part not in params:
                raise self._unknown(part, key, params, f"--{name}", option=True)
            if key and key[-1] != "init_args" and self._has_class(key):
                key = (*key, "init_args")
            key, hint = (*key, part), params[part].hint
            params = self._below(key, hint)
        return key, hint

    def _last_class(self, key: Key) -> str | None:
        """The class of the last element of the list at `key`; None where that is unknown, or there is no list."""
        if (above := next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.on_line), None)) is not None:
            return self.on_line[above] if above == key else None
        held = self.config.get(key)
        last = held[-1] if isinstance(held, list) and held else None
        path = last.get("class_path") if isinstance(last, dict) else None
        return path if isinstance(path, str) else None

    def _in_list(self, name: str, part: str, key: Key, path: str, wanted: list[type]) -> tuple[Key, Any]:
        """The full key and the type of an option below the list at `key`: it is for the last element, of class `path`.

        Raises:
            UserError: that class has no such argument.
        """
        place, whole = (*key, part), ".".join(key)
        params = parameters(import_class(path, wanted, self.config.where(key)))
        if params is None or part in SPEC:
            return place, None
        if part not in params:
            near = nearest(part, params)
            raise UserError(
                f"`{part}` is no option of {path}, the last of {whole}",
                where=f"--{name}",
                expected=f"did you mean --{whole}.{near}?" if near else f"one of {', '.join(params)}",
                fix=f"an option below a list is for its last element; for another, give {whole} in a config",
            )
        return place, params[part].hint if name.rstrip("+").endswith(f".{part}") else None

    def _has_class(self, key: Key) -> bool:
        return isinstance(self.config.get((*key, "class_path")), str)

    def _below(self, key: Key, hint: Any) -> dict[str, Parameter] | None:
        """What may follow `key` in a dotted name."""
        if len(key) == 1 and key[0] in self.groups:
            return parameters(self.groups[key[0]])
        path = self.config.get((*key, "class_path"))
        if isinstance(path, str):
            return parameters(import_class(path, classes_of(hint), self.config.where((*key, "class_path"))))
        if len(dataclasses_of(hint)) == 1:
            return parameters(dataclasses_of(hint)[0])
        return {} if not classes_of(hint) and not is_open(hint) and elements_of(hint) is None else None

    def _keys(self, values: dict[str, Any], params: dict[str, Parameter], key: Key) -> None:
        for name, value in values.items():
            name = str(name).rstrip("+")
            if name not in params:
                raise self._unknown(name, key, params, self.config.where((*key, name)))
            if not key and name in self.groups and isinstance(value, dict):
                self._keys(value, parameters(self.groups[name]) or {}, (name,))
            else:
                self._value(value, params[name].hint, (*key, name))

    def _value(self, value: Any, hint: Any, key: Key) -> None:
        classes, records, element = classes_of(hint), dataclasses_of(hint), elements_of(hint)
        if isinstance(value, dict):
            if "class_path" in value and not (classes or records or is_open(hint)):
                self._leaf(value, hint, key)  # a class where a plain value goes, such as a callback indented too far
            elif "class_path" in value or (classes and not records and not is_open(hint)):
                self._class(value, classes + records, key, given_later=has_callable(hint))
            elif is_open(hint):
                return
            elif records:
                fields = max((parameters(r) or {} for r in records), key=lambda names: len(names.keys() & value.keys()))
                self._keys(value, fields, key)
                self._required(value, fields, key)
            else:
                self._leaf(value, hint, key)
        elif isinstance(value, list) and element is not None:
            for index, item in enumerate(value):
                self._value(item, element, (*key, str(index)))
        elif isinstance(value, str) and classes and not takes_words(hint):
            if not value.endswith(FILES):
                self._class({"class_path": value}, classes, key)
        else:
            self._leaf(value, hint, key)

    def _class(self, value: dict[str, Any], wanted: list[type], key: Key, given_later: bool = False) -> None:
        """The class that `value` names, and its arguments; `given_later` where the caller passes more of them."""
        where = self.config.where(key)
        path = value.get("class_path")
        names = " or ".join(c.__name__ for c in wanted)
        if not isinstance(path, str):
            if plain((*key, "class_path")) in self.given or plain(key) in self.given:
                return  # the command line names the class; its arguments are checked there
            raise UserError("has no class_path", where=where, expected=f"a class_path of {names}")
        found = import_class(path, wanted, self.config.where((*key, "class_path")))
        if given_later and inspect.isfunction(found):  # jsonargparse would call it at once, without those
            raise UserError(
                f"{path} is a function, which cannot have init_args here",
                where=self.config.where((*key, "class_path")),
                expected=f"its name alone, `{key[-1]}: {path}`, or a class",
            )
        params = parameters(found)
        for name in value:
            if name not in SPEC:
                inside = params is not None and name in params
                near = f"init_args.{name}" if inside else nearest(name, SPEC)
                expected = f"did you mean {'.'.join((*key, near))}?" if near else "class_path and init_args"
                raise UserError(f"unknown key `{name}`", where=self.config.where((*key, name)), expected=expected)
        args, further = value.get("init_args", {}), value.get("dict_kwargs", {})
        for name, given in (("init_args", args), ("dict_kwargs", further)):
            if not isinstance(given, dict):
                raise UserError(
                    "is empty" if given is None else "is not a mapping",
                    where=self.config.where((*key, name)),
                    expected=f"arguments of {path}",
                    fix="remove the key" if given is None else None,
                )
        if params is None:
            return
        self._keys(args, params, (*key, "init_args"))
        self._keys(further, params, (*key, "dict_kwargs"))
        is_factory = isinstance(found, type) and not any(issubclass(found, c) for c in wanted)
        if not is_factory and not _is_callable_target(found):
            self._required({**args, **further}, params, (*key, "init_args"))

    def _required(self, values: dict[str, Any], params: dict[str, Parameter], key: Key) -> None:
        for name, parameter in params.items():
            path = (*key, name)
            on_line = any(given[: len(plain(path))] == plain(path) for given in self.given)
            if parameter.required and name not in values and not on_line:
                short = ".".join(path)
                raise UserError(
                    f"`{name}` is required but not given",
                    where=self.config.where(key),
                    expected=f"{describe(parameter.hint)}, in a config or as --{short}",
                )

    def _leaf(self, value: Any, hint: Any, key: Key) -> None:
        if takes_anything(hint):
            return
        if problem := unfit(value, hint, self.config.where(key)):
            raise problem

    def _unknown(
        self, name: str, key: Key, params: dict[str, Parameter], where: str, option: bool = False
    ) -> UserError:
        kind, dashes = ("option", "--") if option else ("key", "")
        near = nearest(name, params)
        path = ".".join((*key, near)) if near else self._elsewhere(name, key)
        if path is None:
            given_later = [first for first in list(params)[:1] if first in LATER]
            return unknown(name, sorted(params.keys() - given_later), where, kind)
        return UserError(f"unknown {kind} `{name}`", where=where, expected=f"did you mean {dashes}{path}?")

    def _elsewhere(self, name: str, key: Key) -> str | None:
        """Another level of the config where `name`, or something close to it, would be right."""
        known: dict[str, str] = {}
        for top in ("data", "model"):
            path = self.config.get((top, "class_path"))
            if isinstance(path, str) and top not in key:
                found = parameters(import_class(path, [], self.config.where((top, "class_path")))) or {}
                known |= {argument: f"{top}.init_args.{argument}" for argument in found}
        for group, kind in self.groups.items():
            if group not in key:
                known |= {argument: f"{group}.{argument}" for argument in parameters(kind) or {}}
        near = next((n for n in (name, f"max_{name}") if n in known), None) or nearest(name, known)
        return known[near] if near else None


def _is_callable_target(found: Any) -> bool:
    """Optimisers and schedules get their first argument later, from the module."""
    params = list((parameters(found) or {}).items())
    return bool(params) and params[0][0] in LATER and params[0][1].required


def unknown(name: str, known: Iterable[str], where: str | None, kind: str = "option", prefix: str = "") -> UserError:
    """The error for a name that is not among `known`; `kind` is what the message calls them.

    `prefix` is written before each name, such as `--`.
    """
    names = {one: prefix + one for one in known}
    near = nearest(name, names)
    one_of = f"one of {', '.join(names.values())}" if names else f"no {kind} at all"
    return UserError(
        f"unknown {kind} `{prefix}{name}`", where=where, expected=f"did you mean {names[near]}?" if near else one_of
    )


def unfit(value: Any, hint: Any, where: str, text: bool = False) -> UserError | None:
    """The error for a value that is not of type `hint`; with `text`, the value is a command-line string.

    None where it fits, or where that cannot be determined.
    """
    if (problem := _misfit(value, hint, text)) is None:
        return None
    near = suggest(value, hint)
    quoted = isinstance(value, (bool, int, float)) and str in members(hint)
    return UserError(
        f"`{'null' if value is None else value}` {problem}",
        where=where,
        expected=describe(hint) + (f" (did you mean {near}?)" if near else ""),
        fix=f'quote it: "{value}"' if quoted else None,
    )


def _misfit(value: Any, hint: Any, text: bool) -> str | None:
    # jsonargparse reads null as a value that is not given, and takes anything but text for a dataclass whose fields
    # all have defaults.
    if value is None and not admits_null(hint):
        return "is not valid here"
    if not text and dataclasses_of(hint) == members(hint) and not isinstance(value, dict):
        return "is not valid here"
    try:
        parser = _value_parser(hint)
    except TypeError:  # a type that cannot be hashed
        parser = None
    if parser is None:
        return None
    try:
        if text:
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": copy.deepcopy(value)})  # the parser writes into mappings
    except Exception as error:
        found = re.search(r"(?:File|Directory|Path) (?:does not exist|is not \w+)[^\n]*", str(error))
        return found.group(0) if found else "is not valid here"
    return None


@functools.cache
def _value_parser(hint: Any) -> ArgumentParser | None:
    """A parser of one value; None for a type that jsonargparse cannot read."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except Exception:
        return None
    return parser


def options_of(args: Sequence[str], flags: Callable[[str], bool]) -> list[tuple[str, str | None]]:
    """The `--name value` and `--name=value` pairs of a command line, without the names that `flags` knows."""
    pairs: list[tuple[str, str | None]] = []
    index = 0
    while index < len(args):
        word = args[index]
        index += 1
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = args[index] if index < len(args) else None
        if not equals and following is not None and not following.startswith("--"):
            value, index = following, index + 1
        elif not equals:
            value = None
        if not flags(name):
            pairs.append((name, value))
    return pairs
