"""Reads configs and merges them, and records where each value came from.

Rules, from weak to strong: built-in defaults, the `--config` files in the order given, the command-line options.
Mappings merge key by key, anything else replaces what was there, and `key+:` appends to a list. Where a later file
names another `class_path`, the `init_args` that the new class also takes are kept (an optimiser overlay need not repeat
the learning rate) and the rest are dropped, with a note.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from instructlit.errors import UserError, nearest

Key = tuple[str, ...]


@dataclass
class Config:
    """A tree of values, where each of them was written, and notes on what was dropped."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)  # path of keys -> "file:line", or an option
    notes: list[str] = field(default_factory=list)

    def where(self, key: Key) -> str:
        """How a message names `key`: the file and line that set it or its nearest parent, and the dotted option."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                place = self.places[key[:length]]
                return place if place.startswith("--") else f"{place}: {'.'.join(key)}"
        return f"--{'.'.join(key)}"

    def locate(self, name: str) -> str | None:
        """`where` for the one key whose dotted name ends in `name` (`policy.path`), or None."""
        parts = dotted(name)
        found = {k for k in self.places if plain(k)[-len(parts) :] == parts}
        return self.where(found.pop()) if len(found) == 1 else None

    def get(self, key: Key) -> Any:
        """The value at `key`, or None."""
        node: Any = self.values
        for part in key:
            node = node.get(part) if isinstance(node, dict) else None
        return node


def plain(key: Key) -> Key:
    """`key` without `init_args`, which a command-line name may omit at any depth."""
    return tuple(part for part in key if part != "init_args")


def dotted(name: str) -> Key:
    """The plain key of a dotted name."""
    return plain(tuple(name.split(".")))


class _Loader(yaml.SafeLoader):
    """YAML with the numbers people write: `1e-5` is a number, a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read(name: str, option: str = "--config") -> Config:
    """One YAML file.

    Args:
        name: a path; `configs/…` falls back to the recipes that came with the package.
        option: the option that named it.
    Raises:
        UserError: no such file, not YAML, not a mapping, or a key given twice.
    """
    path = find(name, option)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise UserError(f"is not UTF-8 text: {error.reason}", where=name, expected="a YAML file") from error
    try:
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else {}
        places = dict(_places(node, name, ())) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"not valid YAML: {error.problem}", where=f"{name}:{line}") from error
    except RecursionError as error:
        raise UserError(
            "an alias refers to its own parent", where=name, expected="YAML without recursive aliases"
        ) from error
    finally:
        loader.dispose()
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            f"the top level is a {type(values).__name__}", where=name, expected="keys and values, such as seed: 1"
        )
    return Config(values, places)


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files given with --config or -c, and everything else."""
    files, rest = [], []
    words = iter(args)
    for word in words:
        if word in ("--config", "-c"):
            file = next(words, None)
            if file is None:
                raise UserError("needs a file", where=word, expected="--config path/to/recipe.yaml")
            files.append(file)
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return files, rest


def find(name: str, option: str = "--config") -> Path:
    """The file that `--config name` means, or another option that names a config."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    parts = path.parts
    packaged = None
    if parts and parts[0] == "configs":
        packaged = Path(str(resources.files("instructlit.configs"))).joinpath(*parts[1:])
        if packaged.is_file():
            return packaged
    folder = next((p for p in (path, path.parent, packaged and packaged.parent) if p and p.is_dir()), None)
    known = sorted(p.name for p in folder.glob("*.yaml")) if folder else []
    near = nearest(path.name, known)
    what = f"`{name}` is a folder" if path.is_dir() else f"there is no file `{name}`"
    expected = f"did you mean {path.with_name(near)}?" if near else f"one of {', '.join(known)}" if known else None
    raise UserError(what, where=option, expected=expected)


def compose(layers: list[Config], accepted: Callable[[str], set[str] | None]) -> Config:
    """The layers merged, later ones over earlier ones.

    Args:
        layers: from weak to strong.
        accepted: the arguments that a class_path takes, or None where that is unknown.
    """
    whole = Config()
    for layer in layers:
        _merge(whole, whole.values, layer, layer.values, (), accepted)
    return whole


def _merge(
    whole: Config,
    base: dict[str, Any],
    layer: Config,
    over: dict[str, Any],
    key: Key,
    accepted: Callable[[str], set[str] | None],
) -> None:
    if isinstance(over.get("class_path"), str) and base.get("class_path") not in (None, over["class_path"]):
        _change_class(whole, base, layer, over["class_path"], key, accepted)
    for name, value in over.items():
        inner = (*key, name)
        if isinstance(name, str) and name.endswith("+"):
            _append(whole, base, layer, value, inner)
            continue
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(whole, base[name], layer, value, inner, accepted)
        else:
            for old in [k for k in whole.places if k[: len(inner)] == inner]:
                del whole.places[old]
            base[name] = {} if isinstance(value, dict) else copy.deepcopy(value)
            if isinstance(value, dict):  # in which a "+" appends to nothing
                _merge(whole, base[name], layer, value, inner, accepted)
        _copy_places(whole, layer, inner, inner)


def _append(whole: Config, base: dict[str, Any], layer: Config, value: Any, key: Key) -> None:
    """Lengthen the list at `key`, whose last name ends in "+". A single value there, such as a logger, becomes a list
    of one, as it does for the same name on the command line.
    """
    name = key[-1].removesuffix("+")
    target = (*key[:-1], name)
    before = base.get(name) or []
    if not isinstance(before, list):
        before = [before]
        for old in [k for k in whole.places if k[: len(target)] == target]:
            whole.places[(*target, "0", *old[len(target) :])] = whole.places.pop(old)
    if isinstance(value, list):
        base[name] = before + copy.deepcopy(value)
        _copy_places(whole, layer, key, target, shift=len(before))
    else:
        base[name] = [*before, copy.deepcopy(value)]
        _copy_places(whole, layer, key, (*target, str(len(before))))


def _change_class(
    whole: Config, base: dict[str, Any], layer: Config, new: str, key: Key, accepted: Callable[[str], set[str] | None]
) -> None:
    """Keep of `base`'s init_args what class `new` takes."""
    takes = accepted(new)
    if takes is None or not isinstance(base.get("init_args"), dict):
        return
    dropped = [name for name in base["init_args"] if name not in takes]
    base["init_args"] = {name: value for name, value in base["init_args"].items() if name in takes}
    base.pop("dict_kwargs", None)
    if dropped:
        place = layer.where((*key, "class_path"))
        whole.notes.append(f"{place}: {new} does not take {', '.join(dropped)} of {base['class_path']}; left out")


def _copy_places(whole: Config, layer: Config, source: Key, target: Key, shift: int = 0) -> None:
    for key, place in layer.places.items():
        if key[: len(source)] == source:
            rest = key[len(source) :]
            if shift and rest and rest[0].isdigit():
                rest = (str(int(rest[0]) + shift), *rest[1:])
            whole.places[(*target, *rest)] = place


def _places(node: yaml.Node, name: str, key: Key) -> Iterator[tuple[Key, str]]:
    """The line of every key below `node`; a key given twice in one mapping is refused."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            word = str(key_node.value)
            place = f"{name}:{key_node.start_mark.line + 1}"
            if word in seen and word != "<<":
                raise UserError(f"{'.'.join((*key, word))} is given twice", where=place, fix="keep one of them")
            seen.add(word)
            yield (*key, word), place
            yield from _places(value_node, name, (*key, word))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*key, str(index)), f"{name}:{item.start_mark.line + 1}"
            yield from _places(item, name, (*key, str(index)))
