"""`instructlit export`: a training checkpoint, or a folder of adapters, as a plain Hugging Face folder."""

from pathlib import Path
from typing import Any, Literal

from instructlit.errors import UserError

_PREFIXES = {"reward": "model."}
"""Where a stage's module keeps the model that leaves it; `policy.` where it is not named here."""


def export(
    checkpoint: str,
    output: str,
    *,
    weights: Literal["raw", "ema"] = "raw",
    tokenizer: str | None = None,
    merge: bool = True,
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, config, tokenizer with chat template, card and record.

    Args:
        checkpoint: a checkpoint of one of the stages, file or folder of shards, or a folder of adapters to be merged
            with their trunk.
        output: the folder to write; an earlier export there is replaced once the new one is whole.
        weights: "raw", the weights at the checkpoint, or "ema", their moving average, where the stage keeps one.
        tokenizer: folder or Hub name of the tokenizer; by default the one the run used.
        merge: merge LoRA adapters into the weights; otherwise the folder holds adapters and names their trunk.
        dtype: dtype of the weights written.
    """
    from instructlit.tools.outputs import check_folder

    check_folder(output)
    source = Path(checkpoint).expanduser()
    from instructlit.modules.strategy import is_sharded_checkpoint

    if source.is_dir() and not is_sharded_checkpoint(source):
        model, record, tokens = _from_folder(source, weights)
    else:
        model, record, tokens = _from_checkpoint(source, weights)
    from instructlit.data.tokenizers import load_tokenizer
    from instructlit.models.export import check_no_source, export_folder

    read = [checkpoint, tokenizer or tokens["path"], *(parent["path"] for parent in record.get("parents", []))]
    check_no_source(output, read, "output")
    words = load_tokenizer(tokenizer or tokens["path"])
    if tokenizer is None and tokens.get("chat_template"):
        words.chat_template = tokens["chat_template"]
    if dtype != "same":
        import torch

        model = model.to(getattr(torch, dtype))
    print(export_folder(model, words, output, record, merge=merge))


def _from_checkpoint(file: Path, weights: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model, its record, and what is known of its tokenizer."""
    from instructlit.models.lineage import make_record, parent

    checkpoint = read_checkpoint(file)
    kept = checkpoint["instructlit"]
    stage = kept["stage"]
    model = rebuilt(checkpoint, weights, str(file))
    backbone = kept["backbone"]["path"]
    parents = kept.get("parents") or {"init": backbone}
    record = make_record(
        stage,
        parents=[parent(path, role) for role, path in parents.items()],
        config=_config_beside(file),
        checkpoint=str(file),
        step=int(checkpoint.get("global_step", 0)),
        weights=weights,
    )
    return model, record, {"path": kept.get("tokenizer") or backbone, "chat_template": kept.get("chat_template")}


def read_checkpoint(file: Path, weights: bool = True) -> dict[str, Any]:
    """A checkpoint of one of our stages, read as data, never as code; without `weights` no shard is read.

    Raises:
        UserError: no such file, no whole checkpoint, or one that another program wrote.
    """
    import torch

    from instructlit.modules.strategy import assembled, is_sharded_checkpoint

    if not file.is_file() and not is_sharded_checkpoint(file):
        beside = sorted(p.name for p in file.parent.glob("*.ckpt")) if file.parent.is_dir() else []
        raise UserError(
            f"there is no file {file}",
            where="checkpoint",
            expected="a .ckpt file",
            fix=f"there are {', '.join(beside)}" if beside else None,
        )
    try:
        if is_sharded_checkpoint(file):
            checkpoint = assembled(file, weights)
        else:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a zip, pickle or torch error of many kinds; each means "not a whole checkpoint"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{file} cannot be read as a checkpoint: {reason[:200]}",
            where="checkpoint",
            expected="a whole checkpoint of tensors and plain values",
            fix="take an earlier checkpoint",
        ) from error
    if not isinstance(checkpoint, dict) or "instructlit" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(
            f"{file} was not written by a stage of instructlit",
            where="checkpoint",
            expected="a checkpoint of the SFT, reward or PPO module",
            fix="export a module of your own with `instructlit.models.export.export_folder`",
        )
    return checkpoint


def rebuilt(checkpoint: dict[str, Any], weights: str, name: str) -> Any:
    """The model that leaves the stage, with the weights of the checkpoint or their moving average.

    Raises:
        UserError: the checkpoint keeps no average, or its weights are not those of the backbone it names.
    """
    from instructlit.models.adapters import frozen_state_names
    from instructlit.models.backbone import Backbone, Lora, load_causal_lm, load_scalar_model

    kept = checkpoint["instructlit"]
    options = dict(kept["backbone"])
    if options.get("lora"):
        options["lora"] = Lora(**options["lora"])
    backbone = Backbone(**options)
    if backbone.lora is None and backbone.quantization is None and not _has_adapters(backbone.path):
        backbone.random_init = True  # every weight comes from the checkpoint
    where = f"{name}: backbone"
    load = load_scalar_model if kept["stage"] == "reward" else load_causal_lm
    model = load(backbone, where=where)
    prefix = _PREFIXES.get(kept["stage"], "policy.")
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if weights == "ema":
        average = (kept.get("ppo") or {}).get("ema")
        if average is None:
            raise UserError(
                f"{name} keeps no moving average",
                where="weights",
                expected="raw, or a checkpoint of PPO with `ema_decay`",
                fix="leave out --weights",
            )
        state.update(average["average"])
    frozen = frozen_state_names(model)
    trained = {k: v for k, v in state.items() if k not in frozen}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    odd = sorted({*missing, *unexpected} - frozen)
    if odd:
        raise UserError(
            f"{name} and {backbone.path} differ in {len(odd)} weights, such as {odd[0]}",
            where="checkpoint",
            expected="the backbone that the run was started from",
            fix=f"put back what {backbone.path} held when the run began",
        )
    return model


def _from_folder(folder: Path, weights: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    from instructlit.models.adapters import hold_head
    from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
    from instructlit.models.folders import adapter_config
    from instructlit.models.lineage import make_record, read_record

    adapters = adapter_config(str(folder))
    if adapters is None:
        raise UserError(
            f"{folder} holds no adapters to merge",
            where="checkpoint",
            expected="a .ckpt file, or a folder of adapters",
            fix="a folder with a config.json is a Hugging Face folder already",
        )
    if weights != "raw":
        raise UserError("a folder holds one set of weights", where="weights", expected="raw")
    load = load_scalar_model if hold_head(adapters) else load_causal_lm
    model = load(Backbone(str(folder)), where="checkpoint")
    record = read_record(folder) or make_record("unknown")
    return model, {k: v for k, v in record.items() if k != "weights_sha256"}, {"path": str(folder)}


def _has_adapters(path: str) -> bool:
    from instructlit.models.folders import adapter_config

    return adapter_config(path) is not None


def _config_beside(file: Path) -> dict[str, Any]:
    """The run's config, where it lies in the run's folder as `fit` writes it."""
    import yaml

    for folder in file.parents[:3]:
        if (folder / "config.yaml").is_file():
            return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    return {}
