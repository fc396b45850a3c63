"""Rows packed beside the same rows with their padding: numbers and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_helpers import TINY_SHAPE, token_batch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoXConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from instructlit.types import TokenBatch

BATCH = token_batch([("say red: ", "der"), ("no", "on"), ("count to five: ", "1 2 3 4 5"), ("a", "b")])
SHAPE: dict[str, Any] = TINY_SHAPE | {"vocab_size": 128, "eos_token_id": 2, "pad_token_id": 0}
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=2, pad_token_id=0, eos_token_id=2),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "mistral": MistralConfig(**GROUPED, head_dim=16, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
}


def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """That of the tiny model that `request.param` names; the body of fixtures, each with names of its own."""
    if request.param in CONFIGS:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(tmp_path)
        return str(tmp_path)
    return str(request.getfixturevalue(f"tiny_{request.param}_dir"))


def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on rows keep their padding."""
    for module in ("token_scores", "scalar"):
        monkeypatch.setattr(f"instructlit.models.{module}.pays", lambda *_, **__: False)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """That of all weights in one float32 vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).float()


def assert_same_gradient(found: Tensor, expected: Tensor) -> None:
    # a rounding of the largest gradient is one of any: sums run in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)


def assert_values_as_padded(model: Any, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of a scalar model and their gradients, the rows padded on the left as PPO has them."""
    ids, mask = batch.input_ids.flip(1), batch.attention_mask.flip(1)
    weight = torch.linspace(-1, 2, ids.numel()).view(ids.shape)
    found = model(ids, mask)
    assert found[~mask].abs().max() == 0
    own = gradient(model, (found * weight).sum())
    padded(monkeypatch)
    expected = model(ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient(model, (expected * weight).sum()))
