"""Dropout: off everywhere unless asked for, and then at the residual connections only, as the paper trained SFT. The
same holds for randomness in the choice of experts.

Source: Ouyang et al. 2022 (InstructGPT), appendix C.1: residual dropout of 0.2 for SFT.
"""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from instructlit.errors import UserError

RESIDUAL_FIELDS = ("resid_pdrop", "resid_dropout", "hidden_dropout", "residual_dropout", "dropout")
"""What architectures call the dropout on what a block adds to the residual stream."""

_OTHER_MARKS = ("dropout", "pdrop", "layerdrop")


def dropout_fields(config: PretrainedConfig) -> list[str]:
    """The fields of an architecture's config that set a dropout rate, in alphabetical order."""
    return sorted(name for name, value in config.to_dict().items() if _is_rate(name, value))


def configure_dropout(config: PretrainedConfig, rate: float, where: str) -> None:
    """Set the residual dropout of `config` to `rate` and every other dropout to 0, in place.

    Raises:
        UserError: `rate` is not a probability, or it is not 0 and the architecture has no residual dropout.
    """
    if not 0.0 <= rate < 1.0:
        raise UserError(f"dropout is {rate}", where=where, expected="a rate of at least 0 and below 1")
    fields = dropout_fields(config)
    residual = [name for name in fields if name in RESIDUAL_FIELDS]
    if rate and not residual:
        offered = ", ".join(fields) or "no dropout at all"
        raise UserError(
            f"dropout is {rate}, but {config.model_type} has no residual dropout; its config offers: {offered}",
            where=where,
            expected="dropout 0 for this architecture",
            fix="leave `dropout` out; GPT-2, GPT-J, GPT-NeoX, Falcon, Bloom, OPT and Phi are among those that have one",
        )
    for name in fields:
        setattr(config, name, rate if name in residual else 0.0)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate in `model` to 0, in place: two forward passes agree, in training mode too.

    Rates live in `nn.Dropout` modules, in plain attributes of other modules, and in configs that a forward asks.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            _clear(config, dropout_fields(config))
        _clear(module, [name for name, value in vars(module).items() if _is_rate(name, value)])


def steady_routers(model: nn.Module) -> None:
    """Let routers that draw while training, or add noise, choose experts in training as they do in evaluation: Mixtral,
    MiniMax, DBRX, Phi-3.5-MoE. Adapters and dropout inside them still follow the model's mode."""
    for module in model.modules():
        if any("jitter" in name for name in vars(module)):
            module.register_forward_pre_hook(_as_in_evaluation)


def _as_in_evaluation(module: nn.Module, _args: Any) -> None:
    module.training = False


def _is_rate(name: str, value: Any) -> bool:
    return any(mark in name for mark in _OTHER_MARKS) and not isinstance(value, bool) and isinstance(value, int | float)


def _clear(holder: Any, names: list[str]) -> None:
    for name in names:
        setattr(holder, name, 0.0)
