"""Where rows come from: a file, several, a glob, a `datasets` folder or a Hub name, each with a weight."""

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path

from instructlit.errors import UserError, nearest

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One place that rows come from.

    Args:
        path: a file (.jsonl, .json, .parquet, .csv, .tsv), a glob, a folder written by `datasets`, or a Hub name.
        weight: how often its rows are seen in an epoch: 2 is twice each, 0.5 half of them, drawn again in every epoch.
        format: "auto", or the one record form its rows must have: native, messages, preference, transcript, sharegpt,
            alpaca, oasst.
        split: the split of a `datasets` folder or Hub name; "train" when not given.
        subset: the configuration of a Hub name that has several.
    """

    path: str
    weight: float = 1.0
    format: str = "auto"
    split: str | None = None
    subset: str | None = None

    @property
    def identity(self) -> tuple[str | None, ...]:
        """The fields that decide which records its files contain."""
        return self.format, self.split, self.subset


Place = str | Source | Path
"""A plain name is a `Source` with only a path. `Path` stops jsonargparse from reading a named file as a config and
putting its content in place of the name; it comes last, because it turns any value into text."""

Sources = str | Source | list[str | Source] | Path


def as_source(place: Place) -> Source:
    """A source unchanged, or the source with that name as its path."""
    return place if isinstance(place, Source) else Source(str(place))


def as_sources(value: Sources | None) -> list[Source]:
    """Any form of sources as a list; None is an empty list."""
    if value is None:
        return []
    return [as_source(entry) for entry in (value if isinstance(value, list) else [value])]


def require_name(**options: Sources | None) -> None:
    """Rejects a source with an empty name, such as an unset shell variable: it would be treated as no source.

    Args:
        options: the sources, under the names of their options.

    Raises:
        UserError: for the first empty name.
    """
    for option, value in options.items():
        if any(not source.path for source in as_sources(value)):
            raise UserError(
                "the name is empty",
                where=option,
                expected="a file, a glob, a `datasets` folder or a name on the Hub; null for no source",
            )


def is_dataset_folder(path: Path) -> bool:
    """Whether `datasets` wrote this folder with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def is_hub_name(path: str) -> bool:
    """Whether `path`, which is not a local file, can be the name of a dataset on the Hub."""
    return bool(_HUB_NAME.fullmatch(path)) and not path.lower().endswith(SUFFIXES)


def expand(source: Source, option: str) -> list[str]:
    """The files (or the one folder or Hub name) that a source names, sorted.

    Raises:
        UserError: naming `option`, if nothing is found, a file has an unsupported suffix, or the weight is not a
            finite number above 0.
    """
    # Not when the source is created: an exception there is lost, as jsonargparse tries one form after another.
    if not 0 < source.weight < math.inf:
        raise UserError(
            f"source {source.path} has weight {source.weight}", where=option, expected="a finite number above 0"
        )
    path = Path(source.path).expanduser()
    if path.is_dir():
        if is_dataset_folder(path):
            return [str(path)]
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        raise UserError(
            f"{path} is a folder that was not written by `datasets`",
            where=option,
            expected="a file, a glob, a folder made by `save_to_disk`, or a Hub name",
            fix=f"give the files in it: {path / ('*' + Path(inside[0]).suffix)}" if inside else None,
        )
    if path.is_file():
        files = [str(path)]
    elif glob.has_magic(source.path):
        files = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not files:
            raise UserError(f"no file matches {source.path}", where=option, expected="a glob with at least one match")
    elif is_hub_name(source.path):
        return [source.path]
    else:
        beside = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        raise UserError(
            f"no such file: {source.path}",
            where=option,
            expected="a file, a glob, a `datasets` folder or a name on the Hub",
            fix=f"did you mean {path.parent / close}?" if close else None,
        )
    for file in files:
        if Path(file).suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{file} has the suffix {Path(file).suffix or '(none)'}",
                where=option,
                expected=f"one of {', '.join(SUFFIXES)}",
                fix="unpack it, or convert it to JSON Lines",
            )
    return files
