"""Missing inputs that a config names: reported before anything is built or downloaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructlit.checkpoints import check_whole, state_of
from instructlit.cli.config import Config, Key, dotted, plain
from instructlit.errors import UserError, nearest

CHECKPOINT_WORDS = ("last", "hpc", "registry")
INPUTS = ("path", "tokenizer", "train", "validation", "test", "pretraining", "demonstrations", "prompts")
"""Arguments that name something to read."""

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".jinja", ".ckpt", ".safetensors")


def check_files(config: Config, options: Sequence[tuple[str, str | None]]) -> None:
    """Raise UserError for the first input of model or data that is clearly a local path and does not exist.

    Args:
        config: the composed config.
        options: the names and values on the command line, which override the config.
    """
    given = [(value, config.where(key)) for key, value in in_force(config, [option for option, _ in options])]
    for option, value in options:
        if value is not None and option.rpartition(".")[2] in INPUTS and not value.startswith(("[", "{")):
            given.append((value, f"--{option}"))
    for value, where in given:
        check_input(value, where, [other for other, _ in given])


def in_force(config: Config, on_line: Sequence[str]) -> Iterator[tuple[Key, str]]:
    """The config's inputs that no command-line option overrides, directly or through a parent key."""
    over = {dotted(option.rstrip("+")) for option in on_line}
    for key, value in inputs(config.values, ()):
        bare = plain(key)
        if not any(bare[:length] in over for length in range(2, len(bare) + 1)):
            yield key, value


def inputs(values: Any, key: Key) -> Iterator[tuple[Key, str]]:
    """Every string that an argument in `INPUTS` holds, alone or in a list."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from inputs(value, (*key, str(name)))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from inputs(value, (*key, str(index)))
    elif isinstance(values, str) and key and key[0] in ("model", "data"):
        named = key[-2] if key[-1].isdigit() else key[-1]
        if named in INPUTS:
            yield key, values


def check_input(value: str, where: str, others: Sequence[str] = ()) -> None:
    """Raise UserError where `value` is clearly a local path and does not exist; a name on the Hub passes.

    Args:
        value: the path or name.
        where: the option that holds it.
        others: paths named elsewhere, which are therefore not suggested.
    """
    path = Path(value).expanduser()
    if not value or any(mark in value for mark in "*?[") or "://" in value or path.exists():
        return
    parent = path.parent
    local = (
        value.startswith(("/", "./", "../", "~")) or path.suffix in FILES or (str(parent) != "." and parent.is_dir())
    )
    if not local:
        return
    near = _nearest(path, [name for name in _names(parent) if str(parent / name) not in others])
    if near is None and not parent.is_dir():
        what = f"there is no folder `{parent}`, and so no `{value}`"
    else:
        what = f"there is no file or folder `{value}`"
    raise UserError(what, where=where, expected=f"did you mean {parent / near}?" if near else None)


def _nearest(path: Path, names: Sequence[str]) -> str | None:
    """The closest of `names`, ignoring file extensions, which would make any two of them similar."""

    def bare(name: str) -> str:
        return name.removesuffix(Path(name).suffix) if Path(name).suffix in FILES else name

    alike_last = sorted(names, key=lambda name: Path(name).suffix == path.suffix)
    whole = {bare(name): name for name in alike_last}
    return whole.get(nearest(bare(path.name), whole) or "")


def check_checkpoint(path: Any, strategy: Any = None) -> None:
    """Refuse a checkpoint that is missing or damaged, or a sharded one where `strategy` does not shard, before anything
    is built.
    """
    if not isinstance(path, str) or path in CHECKPOINT_WORDS or "://" in path or path.startswith("registry:"):
        return
    file = Path(state_of(path))
    if (file / "meta.pt").is_file() and "FSDP" not in str(strategy):
        raise UserError(
            f"`{path}` is a checkpoint of a sharded run",
            where="--ckpt_path",
            expected="a checkpoint of an unsharded run",
            fix="add --config configs/strategy/fsdp2.yaml (--trainer.devices 1 for one process), or start from the "
            f"model that `instructlit export {path} FOLDER` writes",
        )
    if file.exists():
        check_whole(file, "--ckpt_path")
        return
    near = nearest(file.name, [*_names(file.parent), *CHECKPOINT_WORDS])
    meant = near if near in CHECKPOINT_WORDS else str(file.with_name(near)) if near else None
    raise UserError(
        f"there is no file `{path}`",
        where="--ckpt_path",
        expected=f"did you mean {meant}?" if meant else None,
        fix="`best` is known only to the process that trained" if path == "best" else None,
    )


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []
