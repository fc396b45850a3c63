"""One frozen trunk under several models: policy, value, reward and reference hold the same tensors once.

Each model is a tree of modules of its own with peft adapters of its own; only the frozen weights inside are the same
tensors. So nothing has to be switched between a forward pass and its backward, which matters where activations are
computed again in between, and each model's state, optimiser and export stay what they are without sharing.

Source of the arrangement: Santacroce et al. 2023, "Efficient RLHF: Reducing the Memory Usage of PPO", arXiv 2309.00754
(one base, adapters for each role).
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from instructlit.models.adapters import HEAD

Key = tuple[Any, ...]

_QUANTISED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""By what transformers and peft tell that a model's layers are packed."""


class Trunks:
    """The frozen models loaded so far; another from the same folder, in the same precision, shares their weights.

    It applies to weights that nobody trains: those under adapters, quantised ones, and models that are only read.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, tuple[PreTrainedModel, str]] = {}

    def find(self, auto: Any, key: Key, config: Any, where: str) -> tuple[PreTrainedModel, set[str]] | None:
        """A model of class `auto` on weights that are there, and the names of those it still lacks; None for a new one.

        Args:
            auto: the transformers class that builds the model.
            key: what makes two trunks the same: folder, revision, precision, ...
            config: the model's config.
            where: the option that names the model, for the message.
        """
        found = self._kept.get((auto.__name__, *key))
        missing: set[str] = set()
        model = None
        if found is not None:
            model = shared_copy(found[0])
        elif (found := self._kept.get((AutoModelForCausalLM.__name__, *key))) is not None:
            model, missing = _with_head(auto, config, found[0]), {f"{HEAD}.weight"}
        if found is None or model is None:
            return None
        from lightning.pytorch.utilities import rank_zero_info  # 75 MiB that most readers of a model do not need

        rank_zero_info(f"{where}: shares its frozen weights with {found[1]}")
        return model, missing

    def keep(self, auto: Any, key: Key, model: PreTrainedModel, where: str) -> None:
        """Let others share the weights of `model`, which has no adapters yet."""
        self._kept[(auto.__name__, *key)] = (shared_copy(model), where)


def shared_copy(model: Any) -> Any:
    """A copy of a module and all modules in it that holds the very tensors of `model`, quantisation states included."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    for module in model.modules():
        for name in ("quant_state", "state"):  # where bitsandbytes keeps what belongs to a packed weight
            state = vars(module).get(name)
            if state is not None:
                memo[id(state)] = state
    return copy.deepcopy(model, memo)


def _with_head(auto: Any, config: Any, causal: PreTrainedModel) -> PreTrainedModel | None:
    """A scalar model on the trunk of a language model, its head still without values; None where the two differ."""
    with torch.device("meta"):
        hf: Any = auto.from_config(config, dtype=causal.dtype, attn_implementation=config._attn_implementation)
    prefix = hf.base_model_prefix
    trunk, head = getattr(causal, prefix, None), getattr(hf, HEAD, None)
    if trunk is None or type(getattr(hf, prefix, None)) is not type(trunk) or not isinstance(head, nn.Linear):
        return None
    setattr(hf, prefix, shared_copy(trunk))
    for name in _QUANTISED:
        if hasattr(causal, name):
            setattr(hf, name, getattr(causal, name))
    if hasattr(causal.config, "quantization_config"):
        hf.config.quantization_config = causal.config.quantization_config
    hf.score = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, dtype=causal.dtype)
    return hf
