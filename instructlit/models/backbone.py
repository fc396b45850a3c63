"""Loading what a stage trains or reads: a causal language model, or one with a scalar head.

Unlike plain transformers: the dtype is the one asked for, dropout is off unless asked for (transformers keeps GPT-2's
0.1), missing weights are an error and never silently initialised at random, and a pad id equal to eos is taken out
of the config, where it would keep the embedding of eos from being trained (`nn.Embedding(padding_idx=...)`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from instructlit.dtypes import Dtype
from instructlit.errors import UserError, counted
from instructlit.models import packed
from instructlit.models.adapters import HEAD, Lora, add_lora, load_adapters
from instructlit.models.architecture import DTYPES, check_causal_lm, check_scalar_model, is_classifier
from instructlit.models.blocks import compile_blocks
from instructlit.models.dropout import steady_routers
from instructlit.models.folders import (
    adapter_config,
    explained,
    quiet_transformers,
    resolved,
    trunk_of,
)
from instructlit.models.lineage import read_record
from instructlit.models.scalar import ScalarModel
from instructlit.models.trunk import Key, Trunks

UNQUANTISED = (HEAD, "lm_head", "embed_out")
"""Layers that `quantization` leaves as they are."""


@dataclass
class Backbone:
    """A model to load and how.

    Args:
        path: folder of a Hugging Face model, or its name on the Hub.
        revision: branch, tag or commit of a Hub model.
        dtype: dtype the weights are held in; full fine-tuning wants float32 with `trainer.precision: bf16-mixed`.
        attn_implementation: attention kernel of transformers: "sdpa", "eager" or "flash_attention_2"; "auto" is sdpa,
            and eager for the architectures that have no sdpa.
        trust_remote_code: run code that comes with the model; only for models whose code was read.
        random_init: draw the weights at random from the config alone, to pretrain from scratch.
        dropout: residual dropout while training (the paper's SFT used 0.2); every other dropout is 0, and PPO sets this
            one to 0 too.
        lora: train low-rank adapters on a frozen trunk; without it all weights are trained.
        quantization: hold the frozen trunk in 4 bits (nf4) or 8 (int8) by bitsandbytes; training it needs `lora`.
        gradient_checkpointing: keep fewer activations and compute them again in the backward pass.
        compile: compile each decoder block with torch.compile; the first steps wait for it.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "float32"
    attn_implementation: str = "auto"
    trust_remote_code: bool = False
    random_init: bool = False
    dropout: float = 0.0
    lora: Lora | None = None
    quantization: Literal["nf4", "int8"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False


def load_causal_lm(
    backbone: Backbone, where: str = "model", *, trunks: Trunks | None = None, frozen: bool = False
) -> PreTrainedModel | nn.Module:
    """The causal language model of `backbone`, in training mode; wrapped by peft where it has adapters.

    Args:
        backbone: what to load.
        where: the option that holds `backbone`, for messages.
        trunks: frozen weights loaded before, shared where they are the same; None shares nothing.
        frozen: nothing of the model will be trained, adapters included.

    Raises:
        UserError: a folder without config or weights, an architecture or a head that is not a language model's, ...
    """
    backbone = _without_new_adapters(backbone, where) if frozen else backbone
    config = check_causal_lm(backbone, where)
    hf, missing = _loaded(AutoModelForCausalLM, backbone, config, where, trunks, frozen)
    if missing:
        raise _missing_weights(backbone.path, missing, where)
    model = _prepared(hf, backbone, scalar=False, where=where)
    return model.requires_grad_(False).eval() if frozen else model


def load_scalar_model(
    backbone: Backbone,
    *,
    require_head: bool = False,
    where: str = "model",
    trunks: Trunks | None = None,
    frozen: bool = False,
) -> ScalarModel:
    """The reward or value model of `backbone`: from a reward model's folder with its head and shift, or from a language
    model's folder with a new head, which a message says.

    Args:
        backbone: what to load.
        require_head: refuse a folder without a trained head.
        where: the option that holds `backbone`, for messages.
        trunks: as in `load_causal_lm`.
        frozen: as in `load_causal_lm`.

    Raises:
        UserError: as `load_causal_lm`; a classifier with more than one label; no trained head where one is required.
    """
    backbone = _without_new_adapters(backbone, where) if frozen else backbone
    config, trained = check_scalar_model(backbone, require_head=require_head, where=where)
    config.num_labels = 1
    hf, missing = _loaded(AutoModelForSequenceClassification, backbone, config, where, trunks, frozen)
    if not isinstance(getattr(hf, HEAD, None), nn.Linear):
        raise UserError(
            f"the head of {type(hf).__name__} is not a linear layer called {HEAD!r}",
            where=f"{where}.path",
            expected="a decoder architecture such as Llama, GPT-2, GPT-NeoX, Qwen or Mistral",
        )
    others = missing - {f"{HEAD}.weight"}
    if others or (missing and is_classifier(config)):
        raise _missing_weights(backbone.path, missing, where)
    own = adapter_config(backbone.path) is None
    saved = {"reward_shift": getattr(config, "reward_shift", None)} if own else read_record(backbone.path)
    model = ScalarModel(hf, shift=float(saved.get("reward_shift") or 0.0))
    if not trained:
        model.head.initialise()  # type: ignore[operator]
        from lightning.pytorch.utilities import rank_zero_info  # 75 MiB that most readers of a model do not need

        rank_zero_info(f"{where}: {backbone.path} has no scalar head; a new one was initialised")
    model.backbone = _prepared(hf, backbone, scalar=True, where=where)
    return model.requires_grad_(False).eval() if frozen else model


def _without_new_adapters(backbone: Backbone, where: str) -> Backbone:
    """`backbone` without `lora`, which a warning names: untrained adapters change nothing."""
    if backbone.lora is None:
        return backbone
    from lightning.pytorch.utilities import rank_zero_warn  # 75 MiB that most readers of a model do not need

    rank_zero_warn(f"{where}.lora is not used: nothing of this model is trained")
    return replace(backbone, lora=None)


def _loaded(
    auto: Any, backbone: Backbone, config: PretrainedConfig, where: str, trunks: Trunks | None, frozen: bool
) -> tuple[PreTrainedModel, set[str]]:
    """As `_build`, but frozen weights that `trunks` holds already are not loaded again."""
    adapters = adapter_config(backbone.path)
    if trunks is None or not (frozen or backbone.lora or backbone.quantization or adapters):
        return _build(auto, backbone, config, where)
    key = trunk_key(backbone)
    if (found := trunks.find(auto, key, config, where)) is not None:
        return found
    hf, missing = _build(auto, backbone, config, where)
    trunks.keep(auto, key, hf, where)
    return hf, missing


def trunk_key(backbone: Backbone) -> Key:
    """What two backbones must have in common for their frozen weights to be the same tensors."""
    source = trunk_of(backbone.path) or backbone.path
    folder = Path(source).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else source
    # What `auto` is for an architecture that has sdpa; one that has none cannot be asked for it by name.
    attention = "sdpa" if backbone.attn_implementation == "auto" else backbone.attn_implementation
    return name, backbone.revision, backbone.dtype, attention, backbone.quantization, backbone.dropout


def made(make: Callable[..., Any], backbone: Backbone, config: PretrainedConfig, **more: Any) -> Any:
    """What transformers makes of `config`, by `from_config` or `from_pretrained`, the way `backbone` says.

    Its own choice of attention would be the same, except if a config names a kernel that is not installed here.
    """
    more |= {"config": config, "dtype": DTYPES[backbone.dtype], "trust_remote_code": backbone.trust_remote_code}
    if backbone.attn_implementation != "auto":
        return make(attn_implementation=backbone.attn_implementation, **more)
    try:
        return make(attn_implementation="sdpa", **more)
    except ValueError as error:  # before any weight is read
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make(attn_implementation="eager", **more)


def _build(auto: Any, backbone: Backbone, config: PretrainedConfig, where: str) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the weights that its files do not have."""
    more = {"quantization_config": _quantisation(backbone)} if backbone.quantization else {}
    source = trunk_of(backbone.path) or backbone.path
    try:
        with quiet_transformers():
            if backbone.random_init:
                hf, missing = made(auto.from_config, backbone, config), ()
            else:
                place = resolved(source, backbone.revision, f"{where}.path")
                from_place = partial(auto.from_pretrained, place, revision=backbone.revision, output_loading_info=True)
                hf, info = made(from_place, backbone, config, **more)
                missing = info["missing_keys"]
                _tell_left_out(info["unexpected_keys"], hf, source, where)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds here; every one of them means "not loadable"
        raise explained(error, backbone.path, where) from error
    packed.prepare(hf)
    steady_routers(hf)
    for module in hf.modules():
        # On CPUs with bfloat16 units bitsandbytes repacks a 4-bit weight at its first pass in evaluation mode, and
        # the kernel it takes from then on has no gradient: a policy that has sampled would lose that of its trunk.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return hf, set(missing)


def _tell_left_out(names: Iterable[str], hf: PreTrainedModel, path: str, where: str) -> None:
    """Warn of weights that a model has no place for; a head of another kind than its own is ignored silently."""
    left_out = sorted(name for name in names if name.startswith(f"{hf.base_model_prefix}."))
    if left_out:
        from lightning.pytorch.utilities import rank_zero_warn  # 75 MiB that most readers of a model do not need

        rank_zero_warn(
            f"{where}.path: {path} holds {counted(len(left_out), 'weight')} that its config.json does not provide for, "
            f"such as {', '.join(left_out[:3])}: ignored"
        )


def _quantisation(backbone: Backbone) -> BitsAndBytesConfig:
    import bitsandbytes as bitsandbytes  # if it is missing, transformers would name another version than our extra's

    skip = list(UNQUANTISED)
    if backbone.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[backbone.dtype],
        llm_int8_skip_modules=skip,
    )


def _prepared(hf: PreTrainedModel, backbone: Backbone, *, scalar: bool, where: str) -> nn.Module:
    """Training mode, adapters, checkpointing and compilation, as `backbone` says."""
    hf.train()
    if backbone.gradient_checkpointing:
        _checkpoint_activations(hf)
    model = _adapted(hf, backbone, scalar=scalar, where=where)
    if backbone.compile:
        compile_blocks(model, where)
    return model


def _adapted(hf: PreTrainedModel, backbone: Backbone, *, scalar: bool, where: str) -> nn.Module:
    if adapter_config(backbone.path) is not None:
        return load_adapters(hf, str(Path(backbone.path).expanduser()), scalar=scalar, where=where)
    if backbone.lora is not None:
        return add_lora(hf, backbone.lora, scalar=scalar, where=where)
    if backbone.quantization:
        hf.requires_grad_(False)
    return hf


def _checkpoint_activations(hf: Any) -> None:
    how = {"use_reentrant": False}
    if hasattr(hf, "activation_checkpointing_enable"):  # the newer name
        hf.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _missing_weights(path: str, missing: set[str], where: str) -> UserError:
    some = ", ".join(sorted(missing)[:3])
    return UserError(
        f"{path} lacks {len(missing)} of the model's weights, such as {some}",
        where=f"{where}.path",
        expected="a complete folder",
        fix="export or download it again",
    )
