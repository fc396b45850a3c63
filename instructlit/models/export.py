"""Writes a trained model as a plain Hugging Face folder, complete or not at all.

What goes in: `config.json` and safetensors (adapters merged), `generation_config.json`, the tokenizer with its chat
template, `README.md` for people and `instructlit.json` for the next stage. Plain transformers computes the same numbers
from it, in a fresh process. Two things it cannot hold: a reward model's shift, which is in the config as
`reward_shift` (our loader adds it), and padding where pad is eos, for which the config has no pad id: transformers then
scores one text at a time, since it finds the end of a text by looking for pads.
"""

import copy
import errno
import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from instructlit.errors import UserError
from instructlit.models.adapters import is_adapted, plain_state_dict, unwrapped
from instructlit.models.card import model_card
from instructlit.models.folders import quiet_transformers, trunk_of
from instructlit.models.lineage import RECORD, make_record, weights_digest
from instructlit.models.ranks import on_first_rank_alone
from instructlit.models.scalar import ScalarModel
from instructlit.models.sharding import is_sharded


def export_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    record: dict[str, Any] | None = None,
    *,
    merge: bool = True,
) -> Path:
    """Write `model` to the folder `path`, replacing an earlier export there only once the new one is complete.

    A sharded model is gathered tensor by tensor, for which all ranks must call this; the first writes, and an error
    there is raised in all.

    Args:
        model: a causal language model or a `ScalarModel`, plain or with adapters. It is not changed.
        tokenizer: goes into the folder with its chat template.
        path: the folder to make.
        record: what the model was made from (`lineage.make_record`).
        merge: merge adapters into the weights; else the folder holds adapters (and head) and names their trunk.

    Returns:
        `path`.

    Raises:
        UserError: `path` holds something that is not a model folder, or cannot be written (disk full, permissions). An
            earlier export there is unchanged.
    """
    path = Path(path).expanduser()
    if is_sharded(model):
        state = plain_state_dict(_backbone(model))
        on_first_rank_alone(lambda: _write_folder(model, tokenizer, path, record, merge=merge, state=state))
    else:
        _write_folder(model, tokenizer, path, record, merge=merge, state=None)
    return path


def save_weights(model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a causal language model to `path` for another process to load at once: config, weights, adapters merged,
    and tokenizer; no record or card, and without waiting for the disk. A model folder there is replaced, whoever wrote
    it: a server was started on it.

    Every rank must call this; the first writes, and an error there is raised in all.

    Raises:
        UserError: as `export_folder`.
    """
    state = plain_state_dict(model) if is_sharded(model) else None

    def write(partial: Path) -> None:
        with quiet_transformers():
            _save_plain(unwrapped(model), tokenizer, partial, state or plain_state_dict(model), None)
            tokenizer.save_pretrained(partial)

    on_first_rank_alone(lambda: _beside(path, write, known="config.json"))


def _write_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    record: dict[str, Any] | None,
    *,
    merge: bool,
    state: dict[str, Tensor] | None,
) -> None:
    """Write next to `path` and rename when everything is on the disk."""

    def write(partial: Path) -> None:
        _write(model, tokenizer, partial, path.name, record or make_record("unknown"), merge=merge, state=state)
        _sync(partial)

    _beside(path, write)


def _beside(path: Path, write: Callable[[Path], None], known: str = RECORD) -> None:
    """Have a folder written next to `path`, or to what it links to, and rename it when it is complete. A folder there
    is replaced if it holds the file `known`."""
    _check_replaceable(path, known)
    place = path.resolve()
    partial = _hidden(place, "partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear(place, "partial")
        partial.mkdir()
        write(partial)
        _replace(partial, place)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            fix = ("free some space" if full else "name another folder") + "; what was there before is still there"
            raise _unwritable(path, error, fix) from error
        raise


def _write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    name: str,
    record: dict[str, Any],
    *,
    merge: bool,
    state: dict[str, Tensor] | None,
) -> None:
    scalar = isinstance(model, ScalarModel)
    backbone = _backbone(model)
    hf = unwrapped(backbone)
    shift = float(model.shift) if isinstance(model, ScalarModel) else None
    record = {**record, "kind": "scalar" if scalar else "causal"}
    if shift is not None:
        record["reward_shift"] = shift
    adapters = is_adapted(backbone) and not merge
    with quiet_transformers():
        if adapters:
            _save_adapters(backbone, hf, folder)
        else:
            _save_plain(hf, tokenizer, folder, state or plain_state_dict(backbone), shift)
        tokenizer.save_pretrained(folder)
    record["weights_sha256"] = weights_digest(folder)
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    eos_is_pad = tokenizer.pad_token_id == tokenizer.eos_token_id
    card = model_card(name, record, eos_is_pad=eos_is_pad, adapters=adapters)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _backbone(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, ScalarModel) else model


def _save_plain(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: dict[str, Tensor],
    shift: float | None,
) -> None:
    """Weights and config through an empty model of the same class, so that the trained one stays as it is."""
    config = copy.deepcopy(hf.config)
    config.__dict__.pop("quantization_config", None)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = config.get_text_config()
    text.pad_token_id = None if pad == eos else pad
    text.eos_token_id = eos
    text.bos_token_id = tokenizer.bos_token_id
    if shift is not None:
        config.reward_shift = shift
    if getattr(config, "tie_word_embeddings", False) and not _one_embedding(hf, state):
        config.tie_word_embeddings = text.tie_word_embeddings = False
    with torch.device("meta"):
        empty: Any = _plain_class(hf)(config)
    empty.to(hf.dtype)
    # How names in the files differ from those in memory is noted at loading, on the instance.
    empty._weight_conversions = getattr(hf, "_weight_conversions", None)
    if shift is None:
        empty.generation_config = generation_config(tokenizer, hf.generation_config)
    empty.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in state.items()})


def _one_embedding(hf: PreTrainedModel, state: dict[str, Tensor]) -> bool:
    """Whether what reads tokens and what predicts them are the same numbers, as where they are tied: adapters on one of
    the two, or merged into it, part them. A program that reads weights as the config says would lose one."""
    names = {id(module): f"{name}.weight" for name, module in hf.named_modules()}
    ends = hf.get_input_embeddings(), hf.get_output_embeddings()
    found = [state.get(names.get(id(end), "")) for end in ends]
    return any(weight is None for weight in found) or torch.equal(*found)  # type: ignore[arg-type]


def _save_adapters(backbone: Any, hf: PreTrainedModel, folder: Path) -> None:
    name = str(hf.name_or_path)
    trunk = Path(name).expanduser()
    for config in backbone.peft_config.values():
        config.base_model_name_or_path = str(trunk.resolve()) if trunk.is_dir() else name
    backbone.save_pretrained(folder)


def _plain_class(hf: PreTrainedModel) -> type[PreTrainedModel]:
    """The model's class without what sharding added to it."""
    return next(c for c in type(hf).__mro__ if c.__module__.startswith(("transformers.", "transformers_modules.")))


def generation_config(tokenizer: PreTrainedTokenizerBase, earlier: GenerationConfig | None = None) -> GenerationConfig:
    """How the folder generates by default: as it was trained to sample, and with an end and a pad.

    Args:
        tokenizer: gives the ids of eos, pad and bos.
        earlier: its further ends of a turn are kept, nothing else (a base model's top-k would change what is sampled).
    """
    before = getattr(earlier, "eos_token_id", None)
    before = before if isinstance(before, list) else [] if before is None else [before]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *before]))
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def check_destination(path: str | Path) -> None:
    """Refuse a place where a folder cannot be written, as far as it can be known beforehand.

    The folder above is made, and a file is written in it and removed.

    Raises:
        UserError: something of that name must not be replaced, or nothing can be written beside it.
    """
    path = Path(path).expanduser()
    _check_replaceable(path)
    try:
        above = path.resolve().parent
        above.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(b"0")
    except OSError as error:
        raise _unwritable(path, error, "name another folder") from error


def check_no_source(path: str | Path, sources: Iterable[str], where: str | None = None) -> None:
    """Refuse to write a folder over one that is read from.

    Args:
        path: the folder to write.
        sources: models and tokenizers, folders or names on the Hub; of adapters their trunk counts too.
        where: the option that names `path`, for messages.

    Raises:
        UserError: `path` is the folder of one of them, or holds it.
    """
    place = Path(path).expanduser().resolve()
    for source in sources:
        for name in filter(None, (source, trunk_of(source))):
            folder = Path(name).expanduser()
            if folder.is_dir() and folder.resolve().is_relative_to(place):
                raise UserError(
                    f"{name}, which the model is read from, would be overwritten",
                    where=where or str(path),
                    expected="a separate folder",
                    fix="name another folder",
                )


def _unwritable(path: Path, error: Exception, fix: str) -> UserError:
    return UserError(
        f"the folder cannot be written: {error}",
        where=str(path),
        expected="a place with free space and permission to write",
        fix=fix,
    )


def _check_replaceable(path: Path, known: str = RECORD) -> None:
    """Never delete what we did not write, which the file `known` tells."""
    if path.is_file():
        raise UserError("there is a file of that name", where=str(path), expected="a folder, new or from an export")
    if path.is_dir() and any(path.iterdir()) and not (path / known).is_file():
        raise UserError(
            f"the folder holds files but no {known}, so it is not replaced",
            where=str(path),
            expected="a new folder, an empty one or an earlier export",
            fix="name another folder, or empty this one",
        )


def _sync(folder: Path) -> None:
    """Sync the bytes to the disk before the folder gets its name."""
    for file in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(partial: Path, path: Path) -> None:
    """Give `partial` the name `path`; what had the name goes only after."""
    previous = _hidden(path, "previous")
    if path.exists():
        path.rename(previous)
    try:
        partial.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)
    _clear(path, "previous")


def _hidden(path: Path, what: str) -> Path:
    """A name beside `path` that says whose it is, and that no earlier process of the same number has used."""
    return path.parent / f".{path.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}"


def _clear(path: Path, what: str) -> None:
    """Remove what ended processes of this machine have left next to `path`: each a whole model."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{what}-*"):
        pid = left.name.rpartition(f".{what}-")[2].partition("-")[0]
        if pid.isdigit() and not _at_work(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _at_work(pid: int) -> bool:
    """Whether another process of that number is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return pid != os.getpid()
