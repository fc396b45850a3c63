"""Rows packed beside the same rows with their padding: numbers and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instructlit.types import TokenBatch


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
