"""A backbone's shapes without its weights, and the bytes that the real ones take."""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from instructlit.models.adapters import HEAD, Lora, add_lora, unwrapped, without_layers
from instructlit.models.architecture import checked_config
from instructlit.models.backbone import UNQUANTISED, Backbone, made
from instructlit.models.folders import adapter_config


@dataclass(frozen=True)
class Weight:
    """One parameter: its name in the transformers model, its shape, the bytes it takes, and whether it is trained."""

    name: str
    shape: torch.Size
    bytes: int
    trained: bool
    frozen_trunk: bool  # held in common by all models on the same trunk


def outline(backbone: Backbone, *, scalar: bool, where: str) -> nn.Module:
    """The model of `backbone` on the meta device, adapters included; packed layers stand as plain ones.

    Raises:
        UserError: no config.json where the backbone says.
    """
    config = checked_config(backbone, where, weights=False)
    adapters = adapter_config(backbone.path)
    auto: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    with torch.device("meta"):
        hf = made(auto.from_config, backbone, config)
        lora = backbone.lora
        if adapters is not None:
            lora = Lora(rank=int(adapters["r"]), target_modules=adapters["target_modules"])
        if lora is not None:
            return add_lora(hf, lora, scalar=scalar, where=where).train()
    if backbone.quantization:
        hf.requires_grad_(False)
    return hf.train()


def weights(model: nn.Module, backbone: Backbone, frozen: bool = False) -> list[Weight]:
    """The parameters of an outline, each once, with the bytes that the loaded model takes for it."""
    packed = _packed_layers(model, backbone.quantization)
    on_trunk = frozen or not any(p.requires_grad and ".lora_" not in n for n, p in _head_aside(model))
    found = []
    for name, p in unwrapped(model).named_parameters():
        plain = without_layers(name)
        own = ".lora_" in name or HEAD in name.split(".")
        size = p.numel() * p.element_size()
        if plain in packed:
            size = _packed_bytes(p.numel(), packed[plain], backbone.quantization)
        found.append(Weight(plain, p.shape, size, p.requires_grad and not frozen, on_trunk and not own))
    return found


def _head_aside(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if HEAD not in n.split(".")]


def _packed_layers(model: nn.Module, quantization: str | None) -> dict[str, int]:
    """Names and outputs of the weights that bitsandbytes packs: those of linear layers inside the trunk."""
    if quantization is None:
        return {}
    found = {}
    for name, module in unwrapped(model).named_modules():
        plain = without_layers(name)
        parts = plain.split(".")
        if isinstance(module, nn.Linear | Conv1D) and not {"lora_A", "lora_B", *UNQUANTISED}.intersection(parts):
            found[f"{plain}.weight"] = module.nf if isinstance(module, Conv1D) else module.out_features
    return found


def _packed_bytes(count: int, outputs: int, quantization: str | None) -> int:
    """Bytes of one packed weight of `count` values with what unpacks it.

    nf4 with double quantisation: half a byte a weight, a byte for each block of 64, a float32 for each 256 of those,
    and 273 float32 of tables (Dettmers et al. 2023, arXiv 2305.14314, section 3). int8: a byte a weight and a float32
    for each output (Dettmers et al. 2022, arXiv 2208.07339).
    """
    if quantization == "int8":
        return count + 4 * outputs
    blocks = ceil(count / 64)
    return ceil(count / 2) + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256 + 1)
