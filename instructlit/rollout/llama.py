"""The layers of Llama's family as a decoder computes them: from the model's weights, norms and angles in float32."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm:
    """RMS norm in float32 (W, ..., d)."""

    def __init__(self, module: Any):
        self.weight, self.epsilon = module.weight.float(), module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.epsilon)


class Linear:
    """Some linear layers of one input, in `dtype`, with their outputs side by side.

    On a CPU where torch has oneDNN their weights are copied into one, in the order in which its product reads them:
    else every product of a step, which has few rows, would reorder them. Elsewhere they are copied in 16 bits alone,
    and not where they are the trunk of adapters, which is there to save memory.
    """

    def __init__(self, modules: list[Any], dtype: torch.dtype):
        self.dtype = dtype
        self._packed = modules[0].weight.device.type == "cpu" and can_pack(dtype)
        layers = [getattr(m, "base_layer", m) for m in modules]
        self._parts = [(m.weight.detach().to(dtype), None if m.bias is None else m.bias.to(dtype)) for m in layers]
        self._low_rank = _low_rank(modules, dtype)
        joins = self._packed or (dtype.itemsize == 2 and self._low_rank is None)
        if joins and len(modules) > 1:
            weights, biases = zip(*self._parts, strict=True)
            self._parts = [(torch.cat(weights), None if biases[0] is None else torch.cat(biases))]
        if self._packed:
            self._parts = [(torch.ops.mkldnn._reorder_linear_weight(weight), bias) for weight, bias in self._parts]

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self._packed:
            found = [torch.ops.mkldnn._linear_pointwise(x, *part, "none", [], "") for part in self._parts]
        else:
            found = [F.linear(x, *part) for part in self._parts]
        out = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        if self._low_rank is None:
            return out
        down, up = self._low_rank
        return torch.addmm(out, x @ down, up)


def _low_rank(modules: list[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """The adapters on linear layers of one input as two matrices: (in, all ranks), and (all ranks, out) in blocks."""
    down, up, adapted = [], [], False
    for module in modules:
        names = module.active_adapters if hasattr(module, "base_layer") else []
        adapted = adapted or bool(names)
        down += [module.lora_A[name].weight.mT for name in names]
        scaled = [module.scaling[name] * module.lora_B[name].weight.mT for name in names]
        up.append(torch.cat(scaled) if scaled else module.weight.new_zeros(0, module.weight.shape[0]))
    return (torch.cat(down, dim=1).to(dtype), torch.block_diag(*up).to(dtype)) if adapted else None


def is_linear(module: Any) -> bool:
    """Whether `Linear` computes what a layer does: floating-point weights, plain or under LoRA that is neither merged
    nor off, and that adds nothing but its product."""
    layer = getattr(module, "base_layer", module)
    if type(layer) is not nn.Linear or not layer.weight.is_floating_point():
        return False
    if layer is module:
        return True
    plain = type(module).__module__ == "peft.tuners.lora.layer" and not module.merged and not module.disable_adapters
    return plain and all(
        name in module.lora_A and not module.use_dora.get(name) and not module.lora_bias.get(name)
        for name in module.active_adapters
    )


class Layer:
    """The weights of one layer."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = Linear([attention.o_proj], dtype)
        self.gate_up, self.down = Linear([mlp.gate_proj, mlp.up_proj], dtype), Linear([mlp.down_proj], dtype)
        self.before_attention, self.before_mlp = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.activation = mlp.act_fn
        normed = hasattr(attention, "q_norm")
        self.head_norms = (Norm(attention.q_norm), Norm(attention.k_norm)) if normed else None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (W, H, size) turned by the angles (W, 1, size) of their positions (Su et al. 2021, arXiv 2104.09864); the
    sine's first half has its sign changed."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether weights of `dtype` are kept in oneDNN's order, by the operators that torch's compiler uses for it."""
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in needed):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
