"""LoRA adapters by peft: added, switched off temporarily (the reference policy), merged into plain weights.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685; Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, for quantised trunks.
"""

import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from instructlit.errors import UserError, first_line, require
from instructlit.models.shards import on_first_rank

HEAD = "score"
"""What the sequence-classification models of transformers' decoder families call their head."""

_NOT_AS_LINEAR = ("DeepseekV4GroupedLinear", "Llama4Router", "PhimoeTopKRouter")
"""Layers that inherit from a linear one but have other inputs or outputs: no adapter can wrap them."""

_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    # The others begin with a part of the trunk, and take it out there: with them off, the reference is another model.
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
}
"""The fields of an adapter_config.json that decide whether adapters only add a product to weights."""


@dataclass
class Lora:
    """Low-rank adapters on the linear layers of a frozen trunk.

    Args:
        rank: rank of each adapter's two matrices.
        alpha: scale: an adapter adds alpha / rank times its product to the layer.
        dropout: dropout on the input of each adapter; PPO sets it to 0.
        target_modules: "all-linear" for every linear layer but the heads, or the names of the layers to adapt.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "base_model")


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, without peft's wrapper (adapter layers stay inside it)."""
    return model.get_base_model() if is_adapted(model) else model  # type: ignore[operator,return-value]


def adapts_only(model: nn.Module, layers: Collection[nn.Module]) -> bool:
    """Whether `model` is plain, or has LoRA on some of these layers and nothing else from peft."""
    if not is_adapted(model):
        return True
    from peft import PeftType
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    configs: Any = model.peft_config
    if any(config.peft_type != PeftType.LORA for config in configs.values()):
        return False
    ours = {id(layer) for layer in layers}
    parts = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return all(id(module) in ours for module in unwrapped(model).modules() if isinstance(module, parts))


def add_lora(model: PreTrainedModel, lora: Lora, *, scalar: bool, where: str) -> nn.Module:
    """`model` frozen, with new trainable float32 adapters; a scalar model's head stays trainable, in float32.

    New adapters change nothing at first, so the outputs are those of `model`.

    Raises:
        UserError: an impossible rank, rate or layer name.
    """
    from peft import LoraConfig, get_peft_model

    require("a whole number above 0", f"{where}.lora.", rank=lora.rank)
    require("a finite number above 0", f"{where}.lora.", alpha=lora.alpha)
    require("a number from 0 to 1", f"{where}.lora.", dropout=lora.dropout)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=[name for name, m in model.named_modules() if type(m).__name__ in _NOT_AS_LINEAR] or None,
        modules_to_save=[HEAD] if scalar else None,
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores the transpose
    )
    linear = sorted({name.rsplit(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
    try:
        if not isinstance(lora.target_modules, str):
            _check_names(model, lora.target_modules)
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    except (ValueError, re.error) as error:  # peft reads a text that is not "all-linear" as a pattern
        named, refused = lora.target_modules, "incompatible" in str(error)  # as Mamba's fused layers are
        names = ", ".join(linear) or "the names peft knows"
        raise UserError(
            f"not every layer of {named} takes adapters" if refused else f"no layer is called {named}",
            where=f"{where}.lora.target_modules",
            expected=f"others of {names}" if refused else f'"all-linear" or some of {names}',
            fix=first_line(error),
        ) from error
    _float32_trainable(adapted)
    return adapted


def _check_names(model: nn.Module, targets: list[str]) -> None:
    """Raise ValueError for the first that no layer has; peft only requires one of them to exist."""
    known = [f".{name}" for name, _ in model.named_modules()]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in known):
            raise ValueError(f"no layer is called {target}")


def check_plain_lora(config: dict[str, Any], path: str, where: str) -> None:
    """Refuse adapters that are not plain LoRA: they would be merged wrongly, or be missing from checkpoints.

    Args:
        config: the adapter_config.json.
        path: its folder, for the message.
        where: the option that names the folder.

    Raises:
        UserError: another method of peft, or an option of LoRA that changes more than weights, or the trunk.
    """
    for option, plain in _PLAIN_LORA.items():
        if (value := config.get(option)) not in plain:
            raise UserError(
                f"{path} holds adapters other than plain LoRA: {option} is {json.dumps(value)} in adapter_config.json",
                where=where,
                expected=f"one of {', '.join(map(json.dumps, plain))}",
                fix="merge them with peft (merge_and_unload), save that model and its tokenizer, and name the folder",
            )


def hold_head(config: dict[str, Any]) -> bool:
    """Whether adapters with this adapter_config.json are a reward or value model's."""
    return config.get("task_type") == "SEQ_CLS" or HEAD in (config.get("modules_to_save") or ())


def load_adapters(model: PreTrainedModel, folder: str, *, scalar: bool, where: str) -> nn.Module:
    """`model` with the adapters saved in `folder`, trainable; a scalar model's head is trained and saved with them: the
    one saved there or, if the adapters are a language model's, the model's own.

    Raises:
        UserError: adapters that are damaged, incomplete, or of another shape.
    """
    try:
        adapted = _with_saved(model, folder, scalar=scalar)
    except Exception as error:  # peft, safetensors and torch all raise their own kinds
        raise UserError(
            f"the adapters in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}",
            where=f"{where}.path",
            expected="adapter_config.json and the weights that it describes, for the trunk that it names",
            fix="export the adapters again, or copy the complete folder",
        ) from error
    _float32_trainable(adapted)
    return adapted


def _with_saved(model: PreTrainedModel, folder: str, *, scalar: bool) -> nn.Module:
    from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config: Any = PeftConfig.from_pretrained(folder)
    if not scalar or hold_head(vars(config)):
        with warnings.catch_warnings():  # what is missing would be new adapters, which change nothing
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, folder, is_trainable=True)
    # By its task peft trains a head, and looks for it among the weights.
    config.task_type, config.inference_mode = "SEQ_CLS", False
    head: Any = model.get_parameter(f"{HEAD}.weight")
    adapted = get_peft_model(model, config)
    saved = load_peft_weights(folder, "cpu") | {f"base_model.model.{HEAD}.weight": head}
    missing = [name for name in set_peft_model_state_dict(adapted, saved).missing_keys if ".lora_" in name]
    if missing:
        raise ValueError(f"Found missing adapter keys: {missing}")
    return adapted


def _float32_trainable(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


@contextmanager
def reference_view(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with its adapters off: the frozen trunk that training started from, without a second copy of it.

    Which parameters require a gradient is the same afterwards.

    Raises:
        UserError: `model` has no adapters, so that its trunk is what is being trained.
    """
    if not is_adapted(model):
        raise UserError(
            "the policy has no adapters to turn off, so it cannot be its own reference",
            where="reference",
            expected="a policy with `lora`, or a reference of its own",
            fix="set `policy.lora`, or name the SFT folder as `reference`",
        )
    needed = {p: p.requires_grad for p in model.parameters()}
    try:
        with model.disable_adapter():  # type: ignore[operator]
            yield model
    finally:
        for parameter, grad in needed.items():  # peft turns gradients on for every adapter it re-enables
            parameter.requires_grad_(grad)


def frozen_state_names(module: nn.Module) -> set[str]:
    """Entries of `module.state_dict()` that belong to a frozen trunk under adapters; what is trained never does.

    A checkpoint can leave them out, and has to where the trunk is quantised: bitsandbytes writes a quantised layer's
    state but does not read it back. Loading the backbone again gives the same trunk.
    """
    names: set[str] = set()
    for prefix, part in module.named_modules():
        if is_adapted(part):
            kept = (".lora_", ".modules_to_save.")
            prefix = f"{prefix}." if prefix else ""
            names |= {name for name in part.state_dict(prefix=prefix) if not any(mark in name for mark in kept)}
            names -= {prefix + name for name, p in part.named_parameters() if p.requires_grad}
    return names


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of the transformers model, adapters merged in and quantised layers dequantised.

    `model` is not changed: training can continue. Merging adds in float32 and rounds once, to the trunk's dtype. A
    quantised trunk is taken as it was in training, dequantised, so that the merged model computes what was trained.
    Of a sharded model, for which all ranks must call this, only the first rank gets values. They are on the host:
    beside a model that was just trained a GPU may have no room for a second one. Here it holds one layer of it.
    """
    hf, active = unwrapped(model), _active_adapters(model)
    state: dict[str, Tensor] = {}
    for name, tensor in hf.state_dict().items():
        plain = _plain_name(name, active)
        if plain is not None:
            state[plain] = _on_host(on_first_rank(tensor.detach()))
            if plain != name and state[plain].is_floating_point():
                state[plain] = state[plain].to(_dtype(hf))
    for prefix, module in hf.named_modules():
        if _is_quantised(module):
            plain = without_layers(prefix)
            extras = (f"{plain}.weight.", f"{plain}.SCB", f"{plain}.weight_format")
            state = {name: tensor for name, tensor in state.items() if not name.startswith(extras)}
            state[f"{plain}.weight"] = _on_host(_dequantised(module).to(_dtype(hf)))
    for prefix, module in hf.named_modules():
        for adapter in active:
            if hasattr(module, "get_delta_weight") and adapter in module.scaling:  # type: ignore[operator]
                key = f"{without_layers(prefix)}.{getattr(module, 'parameter_name', 'weight')}"
                delta = on_first_rank(module.get_delta_weight(adapter).detach())  # type: ignore[operator]
                weight = state[key].to(delta.device)
                state[key] = _on_host((weight.float() + delta.float()).to(weight.dtype))
    return state


def _on_host(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.cpu()


def _active_adapters(model: nn.Module) -> list[str]:
    if not is_adapted(model):
        return []
    names: Any = model.active_adapters
    return list(names)


def _plain_name(name: str, active: list[str]) -> str | None:
    """The name without peft's parts, or None for what has no place in a plain model."""
    if ".lora_" in name or ".original_module." in name:
        return None
    if ".modules_to_save." in name:
        prefix, rest = name.split(".modules_to_save.")
        adapter, suffix = rest.split(".", 1)
        return f"{prefix}.{suffix}" if adapter in active else None
    return without_layers(name)


def without_layers(name: str) -> str:
    """The name that a module or parameter has in the trunk, where an adapter now stands around it."""
    return re.sub(r"\.base_layer(?=\.|$)", "", name)


def _dtype(hf: PreTrainedModel) -> torch.dtype:
    dtype: Any = hf.dtype
    return dtype


def _is_quantised(module: nn.Module) -> bool:
    # Not getattr: an adapter layer passes `weight` on from the layer inside it.
    return type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def _dequantised(module: nn.Module) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module).detach()
