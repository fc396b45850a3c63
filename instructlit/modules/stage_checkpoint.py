"""A checkpoint of one of the stages read back outside a run: its model and its tokenizer."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from instructlit.checkpoints import check_whole
from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError, first_line
from instructlit.models.adapters import Lora, frozen_state_names
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.folders import adapter_config, resolved
from instructlit.modules.strategy import assembled, is_sharded_checkpoint

_PREFIXES = {"reward": "model."}
"""Where a stage's module keeps the model that leaves it; `policy.` where it is not named here."""


def read_checkpoint(file: Path, weights: bool = True) -> dict[str, Any]:
    """A checkpoint of one of our stages, read as data, never as code; without `weights` no shard is read.

    Raises:
        UserError: no such file, not a complete checkpoint, or one that another program wrote.
    """
    if not file.is_file() and not is_sharded_checkpoint(file):
        beside = sorted(p.name for p in file.parent.glob("*.ckpt")) if file.parent.is_dir() else []
        raise UserError(
            f"there is no file {file}",
            where="checkpoint",
            expected="a .ckpt file",
            fix=f"there are {', '.join(beside)}" if beside else None,
        )
    if weights:
        check_whole(file, "checkpoint")
    try:
        if is_sharded_checkpoint(file):
            checkpoint = assembled(file, weights)
        else:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a zip, pickle or torch error of many kinds; each means "not a whole checkpoint"
        raise UserError(
            f"{file} cannot be read as a checkpoint: {first_line(error)[:200]}",
            where="checkpoint",
            expected="a complete checkpoint of tensors and plain values",
            fix="use an earlier checkpoint",
        ) from error
    if not isinstance(checkpoint, dict) or "instructlit" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(
            f"{file} was not written by a stage of instructlit",
            where="checkpoint",
            expected="a checkpoint of the SFT, reward or PPO module",
            fix="export a module of your own with `instructlit.models.export.export_folder`",
        )
    return checkpoint


def rebuilt(
    checkpoint: dict[str, Any], weights: str, name: str, dtype: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The model that leaves the stage.

    Args:
        checkpoint: as it was read.
        weights: "raw", those of the checkpoint, or "ema", their moving average.
        name: of the checkpoint, for messages.
        dtype: to hold the weights in; None holds them as the run did.
        trust_remote_code: whether code that comes with the backbone may run. That the run allowed it does not count:
            the checkpoint says so, and it is data, which anybody may have written.

    Raises:
        UserError: the checkpoint keeps no average, or its weights are not those of the backbone it names, or that needs
            code that may not run.
    """
    kept = checkpoint["instructlit"]
    options = dict(kept["backbone"])
    if options.get("lora"):
        options["lora"] = Lora(**options["lora"])
    options |= {"dtype": dtype or options["dtype"], "trust_remote_code": trust_remote_code}
    backbone = Backbone(**options)
    where = f"{name}: backbone"
    load: Any = load_scalar_model if kept["stage"] == "reward" else load_causal_lm
    if backbone.lora or backbone.quantization or adapter_config(backbone.path):
        model = load(backbone, where=where)
    else:  # every weight comes from the checkpoint
        model = load(replace(backbone, random_init=True), where=where)
        if load is load_causal_lm and not backbone.random_init:
            with suppress(OSError):  # with further EOS ids of the folder, if it has a generation_config.json
                source = resolved(backbone.path, backbone.revision, where)
                model.generation_config = GenerationConfig.from_pretrained(source, revision=backbone.revision or "main")
    prefix = _PREFIXES.get(kept["stage"], "policy.")
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    average = _average(kept, name) if weights == "ema" else {}
    frozen = frozen_state_names(model)
    trained = {k: v for k, v in state.items() if k not in frozen}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    odd = sorted({*missing, *unexpected} - frozen)
    if odd:
        raise UserError(
            f"{name} and {backbone.path} differ in {len(odd)} weights, such as {odd[0]}",
            where="checkpoint",
            expected="the backbone that the run was started from",
            fix=f"restore what {backbone.path} held when the run began",
        )
    model.load_state_dict(average, strict=False)  # last: of a tensor with two names it holds one
    return model


def _average(kept: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """The moving average of the weights, by their names in the model."""
    ema = (kept.get("ppo") or {}).get("ema")
    if ema is None:
        raise UserError(
            f"{name} holds no moving average",
            where="weights",
            expected="raw, or a checkpoint of PPO with `ema_decay`",
            fix="leave out --weights",
        )
    return ema["average"]


def tokenizer_path(checkpoint: dict[str, Any]) -> str:
    """The folder or Hub name that the run had its tokenizer from."""
    kept = checkpoint["instructlit"]
    return kept.get("tokenizer") or kept["backbone"]["path"]


def tokenizer_of(checkpoint: dict[str, Any]) -> Any:
    """The run's tokenizer, with the chat template and the pad token that the run had.

    Raises:
        UserError: it is no longer where it was.
    """
    padding_token = checkpoint["instructlit"].get("padding_token")
    tokenizer = load_tokenizer(tokenizer_path(checkpoint), padding_token=padding_token, pad_with_eos=True)
    if template := checkpoint["instructlit"].get("chat_template"):
        tokenizer.chat_template = template
    return tokenizer
