"""The trainer's forward passes over responses: log-probs from a policy, values from a value model."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from instructlit.models.scalar import ScalarModel
from instructlit.ops.log_probs import entropy, token_log_probs
from instructlit.ops.masking import position_ids
from instructlit.types import Responses

R = TypeVar("R", bound=Responses)


def response_logits(policy: nn.Module, responses: Responses) -> Tensor:
    """Logits (B, R, V): `logits[:, t]` predicts response token t. The head runs at response positions only."""
    mask = responses.attention_mask
    steps = responses.response_ids.shape[1]
    out = policy(
        input_ids=responses.input_ids,
        attention_mask=mask.long(),
        position_ids=position_ids(mask),
        use_cache=False,
        logits_to_keep=steps + 1,
    )
    return out.logits[:, -steps - 1 : -1]


def response_log_probs(policy: nn.Module, responses: Responses, temperature: float) -> Tensor:
    """Log-probs (B, R) float32 of the sampled tokens at the sampling temperature, zero outside the response."""
    logits = response_logits(policy, responses)
    return token_log_probs(logits, responses.response_ids, temperature) * responses.response_mask


def log_probs_and_entropy(policy: nn.Module, responses: Responses, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs (B, R) as `response_log_probs`, with each step's entropy (B, R) in nats, detached."""
    logits = response_logits(policy, responses)
    log_probs = token_log_probs(logits, responses.response_ids, temperature)
    return log_probs * responses.response_mask, entropy(logits, temperature) * responses.response_mask


def response_values(value: ScalarModel, responses: Responses) -> Tensor:
    """Values (B, R) float32: `values[:, t]` is that of the state before response token t; zero outside the response."""
    values = value(responses.input_ids, responses.attention_mask)
    steps = responses.response_ids.shape[1]
    return values[:, -steps - 1 : -1] * responses.response_mask


def chunks(responses: R, size: int | None) -> Iterator[R]:
    """`responses` in order, `size` rows at a time, each with the columns no row needs cut off."""
    for index in torch.arange(len(responses), device=responses.response_ids.device).split(size or len(responses)):
        yield trimmed(responses.rows(index))


def trimmed(responses: R) -> R:
    """`responses` without the columns that are padding in every row, on either side."""
    prompt = responses.prompt_mask.any(dim=0)
    left = int((~prompt).long().cumprod(dim=0).sum())
    right = int(responses.response_mask.sum(dim=1).max())
    widths = {"prompt": slice(left, None), "response": slice(None, right)}
    columns = responses.response_ids.shape[1]
    cut = {}
    for name, x in vars(responses).items():
        if not isinstance(x, Tensor) or x.dim() != 2:
            cut[name] = x
        elif name.startswith("prompt"):
            cut[name] = x[:, widths["prompt"]]
        else:
            assert x.shape[1] == columns, name
            cut[name] = x[:, widths["response"]]
    return type(responses)(**cut)


def widened(parts: list[Tensor], width: int) -> Tensor:
    """The chunks' (b, r) tensors in one (B, width), zero where a chunk was cut."""
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
