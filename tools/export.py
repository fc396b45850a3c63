"""`instructlit export`: a training checkpoint, or a folder of adapters, as a plain Hugging Face folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from instructlit.checkpoints import state_of
from instructlit.errors import UserError


def export(
    checkpoint: str,
    output: str,
    *,
    weights: Literal["raw", "ema"] = "raw",
    tokenizer: str | None = None,
    merge: bool = True,
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    trust_remote_code: bool = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, config, tokenizer with chat template, card and record.

    Args:
        checkpoint: a checkpoint of one of the stages, file or folder, or a folder of adapters to be merged with their
            trunk.
        output: the folder to write; an earlier export there is replaced once the new one is whole.
        weights: "raw", the weights at the checkpoint, or "ema", their moving average, where the stage keeps one.
        tokenizer: folder or Hub name of the tokenizer; by default the one used by the run.
        merge: merge LoRA adapters into the weights; otherwise the folder holds adapters and names their trunk.
        dtype: dtype of the exported weights.
        trust_remote_code: run code that comes with the base model; set it only after reading that code.
    """
    from instructlit.tools.outputs import check_folder

    check_folder(output)
    source = Path(state_of(str(Path(checkpoint).expanduser())))
    from instructlit.modules.strategy import is_sharded_checkpoint

    is_folder = source.is_dir() and not is_sharded_checkpoint(source)
    model, record, own = (_from_folder if is_folder else _from_checkpoint)(source, weights, trust_remote_code)
    from instructlit.data.tokenizers import load_tokenizer
    from instructlit.models.export import check_no_source, export_folder

    words = load_tokenizer(tokenizer, pad_with_eos=True) if tokenizer else own()
    read = [checkpoint, str(words.name_or_path), *(parent["path"] for parent in record.get("parents", []))]
    check_no_source(output, read, "output")
    if dtype != "same":
        import torch

        model = model.to(getattr(torch, dtype))
    print(export_folder(model, words, output, record, merge=merge))


def _from_checkpoint(
    file: Path, weights: str, trust_remote_code: bool
) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    """The model, its record, and a function that loads its tokenizer."""
    from instructlit.models.lineage import make_record, parent
    from instructlit.modules.stage_checkpoint import read_checkpoint, rebuilt, tokenizer_of

    checkpoint = read_checkpoint(file)
    kept = checkpoint["instructlit"]
    model = rebuilt(checkpoint, weights, str(file), trust_remote_code=trust_remote_code)
    parents = kept.get("parents") or {"init": kept["backbone"]["path"]}
    record = make_record(
        kept["stage"],
        parents=[parent(path, role) for role, path in parents.items()],
        config=_config_beside(file),
        checkpoint=str(file),
        step=int(checkpoint.get("global_step", 0)),
        weights=weights,
    )
    return model, record, partial(tokenizer_of, checkpoint)


def _from_folder(folder: Path, weights: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    from instructlit.data.tokenizers import load_tokenizer
    from instructlit.models.adapters import hold_head
    from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
    from instructlit.models.folders import adapter_config
    from instructlit.models.lineage import make_record, read_record

    adapters = adapter_config(str(folder))
    if adapters is None:
        checkpoints = sorted(str(path) for path in folder.glob("**/*.ckpt"))[:3]
        raise UserError(
            f"{folder} is neither a checkpoint nor a folder of adapters",
            where="checkpoint",
            expected="a .ckpt file, or a folder of adapters",
            fix=f"name one of its checkpoints, such as {' or '.join(checkpoints)}"
            if checkpoints
            else "a folder with a config.json is a Hugging Face folder already",
        )
    if weights != "raw":
        raise UserError("a folder has one set of weights only", where="weights", expected="raw")
    load = load_scalar_model if hold_head(adapters) else load_causal_lm
    model = load(Backbone(str(folder), trust_remote_code=trust_remote_code), where="checkpoint")
    record = {k: v for k, v in (read_record(folder) or make_record("unknown")).items() if k != "weights_sha256"}
    return model, record, partial(load_tokenizer, str(folder), pad_with_eos=True)


def _config_beside(file: Path) -> dict[str, Any]:
    """The run's config, if it is in the run's folder as `fit` writes it."""
    import yaml

    for folder in file.parents[:3]:
        if (folder / "config.yaml").is_file():
            return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    return {}
