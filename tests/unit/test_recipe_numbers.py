"""The numbers that the stages have when a config says nothing: the paper's, where it states them."""

import inspect
from typing import Any

import pytest
import torch

from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.ops.kl_control import FixedKL


def default(module: Any, name: str) -> Any:
    return inspect.signature(module.__init__).parameters[name].default


@pytest.mark.parametrize(
    ("module", "rate", "eps"), [(SFTModule, 9.65e-6, 1e-8), (RewardModule, 9e-6, 1e-8), (PPOModule, 9e-6, 1e-5)]
)
def test_adam_of_every_stage(module: Any, rate: float, eps: float) -> None:
    (group,) = default(module, "optimizer")([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (rate, (0.9, 0.95), eps, 0.0)


def test_ppo() -> None:
    """Appendix C.4 of Ouyang et al. 2022; the value clip is that of Stiennon et al. 2020."""
    expected = {
        "episodes": 256_000,
        "minibatch_size": 64,
        "ppo_epochs": 1,
        "clip": 0.2,
        "value_clip": 0.2,
        "pretraining_coefficient": 27.8,
        "ema_decay": 0.992,
        "value_learning_rate": 9e-6,
    }
    assert {name: default(PPOModule, name) for name in expected} == expected
    assert isinstance(default(PPOModule, "kl"), FixedKL)
    assert default(PPOModule, "kl").coefficient == 0.02
    assert default(PPOModule, "sampling").temperature == 1.0
