"""Where a backbone comes from: a folder, an adapter folder or a Hub name, with errors reported early."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as hf_logging

from instructlit.data.hub import HUB_NAME, check_revision, reachable
from instructlit.errors import UserError, nearest

SINGLE = "model.safetensors"
WEIGHTS = (SINGLE, f"{SINGLE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
"""Sizes without which there is no model: without layers transformers would make one that is only an embedding."""


def check_source(path: str, *, weights: bool, where: str) -> None:
    """Refuse a faulty model path before anything large is loaded.

    Raises:
        UserError: a local path that is missing, is a file, has no config.json, or has no weights where they are needed.
    """
    if not path:
        raise UserError("no model is named", where=where, expected="a model folder or a name on the Hugging Face Hub")
    folder = Path(path).expanduser()
    if folder.is_file():
        fix = "name the folder that holds it"
        if folder.suffix == ".ckpt":
            fix = f"turn it into a folder first: instructlit export {path} FOLDER"
        raise UserError(f"{path} is a file", where=where, expected="a Hugging Face model folder", fix=fix)
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(path) or path.startswith("."):
            raise _missing_folder(path, folder, where)
        return
    if (folder / "config.json").is_file():
        config, files = "a config.json", WEIGHTS
        fix = "to train from scratch set `random_init: true` in addition to `path`; otherwise name a trained folder"
    elif (folder / ADAPTER_CONFIG).is_file():
        config, files = f"an {ADAPTER_CONFIG}", ADAPTER_WEIGHTS
        fix = "export the adapters again, or copy the complete folder"
    else:
        raise UserError(
            f"{path} has no config.json",
            where=where,
            expected="a Hugging Face model folder: config.json, weights and a tokenizer",
            fix=_inner_folder(folder) or "name the folder that `export` or `save_pretrained` wrote",
        )
    if weights and not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{path} has {config} but no weights", where=where, expected=f"one of {', '.join(files)}", fix=fix
        )


def check_whole_weights(path: str, where: str) -> None:
    """Refuse a folder with a weight file, its trunk's and its adapters' included, that is missing or truncated. Only
    headers are read.

    Raises:
        UserError: one is.
    """
    for folder in filter(Path.is_dir, (Path(name).expanduser() for name in (path, trunk_of(path)) if name)):
        index = folder / f"{SINGLE}.index.json"
        listed = _read_json(index)["weight_map"].values() if index.is_file() else ()
        for file in sorted({*folder.glob("*.safetensors"), *(folder / name for name in listed)}):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{file} cannot be read: {error}",
                    where=where,
                    expected="complete weight files",
                    fix="copy or export the model again",
                ) from error


def _missing_folder(path: str, folder: Path, where: str) -> UserError:
    fix = "create it first, or correct the path"
    if folder.parent.is_dir():
        close = nearest(folder.name, [p.name for p in folder.parent.iterdir() if p.is_dir()])
        fix = f"did you mean {folder.parent / close}?" if close else fix
    return UserError(f"there is no folder {path}", where=where, expected="a model folder or a Hub name", fix=fix)


def _inner_folder(folder: Path) -> str | None:
    found = sorted(p.parent.name for p in folder.glob("*/config.json"))
    return f"did you mean {folder / found[-1]}?" if found else None


def adapter_config(path: str) -> dict[str, Any] | None:
    """The adapter_config.json of a folder that holds adapters only, else None.

    Raises:
        UserError: it is damaged.
    """
    folder = Path(path).expanduser()
    file = folder / ADAPTER_CONFIG
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    config = _read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path", ""), str | None):
        raise UserError(
            "is not a config of adapters", where=str(file), expected="what peft writes, with a base_model_name_or_path"
        )
    return config


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(file), fix="copy or export the model again") from error


def trunk_of(path: str) -> str | None:
    """The folder or Hub name of the model that a folder of adapters stands on; None for any other path."""
    return (adapter_config(path) or {}).get("base_model_name_or_path")


def load_config(path: str, *, revision: str | None, trust_remote_code: bool, where: str) -> PretrainedConfig:
    """The config of a folder or Hub name.

    Raises:
        UserError: neither a folder nor available from the Hub, a revision of a folder, an unknown architecture, code
            that is not trusted, a size that no model has.
    """
    source = resolved(path, revision, f"{where}.path")
    if (folder := Path(source)).is_dir() and Path(path).expanduser() == folder:  # and not the Hub's in the cache
        check_revision(revision, folder, f"{where}.revision")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # as where the weights are loaded
        raise explained(error, path, where) from error
    _check_sizes(config.get_text_config(decoder=True), path, where)
    return config


def _check_sizes(config: PretrainedConfig, path: str, where: str) -> None:
    for size in SIZES:
        found = getattr(config, size, None)
        if isinstance(found, int) and found < 1:  # without a layer the embedding alone would be trained
            raise UserError(
                f"{config.attribute_map.get(size, size)} is {found} in the config.json of {path}",
                where=f"{where}.path",
                expected="a whole number above 0",
                fix="copy or export the model again",
            )


def resolved(path: str, revision: str | None, where: str) -> str:
    """What transformers is to load: the folder with `~` opened, a Hub name, or its copy in the cache without a network.

    Raises:
        UserError: neither a folder nor available from the Hub.
    """
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else reachable(path, revision, where)


def explained(error: Exception, path: str, where: str) -> UserError:
    """What transformers could not do with `path`, as one message; `where` is the option that holds the backbone."""
    text = str(error)
    reason = " ".join(text.split())[:300]
    if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)):
        reason = f"{type(error).__name__}: {reason}"  # such as a KeyError, whose text is the key alone
    if "trust_remote_code" in text:
        return UserError(
            f"{path} needs its own code, which is not run without permission",
            where=f"{where}.trust_remote_code",
            expected="a model whose architecture is part of transformers",
            fix="read that code, then set `trust_remote_code: true`",
        )
    if "attention implementation" in text or "attn_implementation" in text or "FlashAttention" in text:
        return UserError(
            f"{path} does not run with this attention: {reason}",
            where=f"{where}.attn_implementation",
            expected="a kernel that is installed and that the architecture supports",
            fix='set it to "sdpa" or "eager"',
        )
    where = f"{where}.path"
    if isinstance(error, pickle.UnpicklingError):  # whose text tells how to load it all the same
        return UserError(
            f"{path} cannot be loaded: a .bin file of it is damaged, or holds code as well as weights",
            where=where,
            expected="complete files that hold only weights",
            fix="download it again, or write it as .safetensors",
        )
    if "ignore_mismatched_sizes" in text:
        return UserError(
            f"{path} cannot be loaded: some of its weights do not have the shapes that its config.json says",
            where=where,
            expected="the weights and the config.json of one model",
        )
    if "model type" in text or "model_type" in text:
        return UserError(
            f"transformers does not know the architecture of {path}",
            where=where,
            expected="an architecture of the installed transformers",
            fix=f"update transformers, or name another model ({reason})",
        )
    return UserError(f"{path} cannot be loaded: {reason}", where=where, expected="a complete Hugging Face model folder")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own report on missing keys and its progress bar: our messages say what matters."""
    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()
