"""The trainer's forward passes over responses: log-probs from a policy, values from a value model."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from instructlit.models.scalar import ScalarModel
from instructlit.models.token_scores import Read, at_tokens
from instructlit.ops.log_probs import entropy, token_log_probs
from instructlit.ops.masking import position_ids
from instructlit.ops.micro_batches import spans
from instructlit.types import Responses

R = TypeVar("R", bound=Responses)


def response_log_probs(policy: nn.Module, responses: Responses, temperature: float) -> Tensor:
    """Log-probs (B, R) float32 of the sampled tokens at the sampling temperature, zero outside the response."""
    return _at_responses(policy, responses, lambda logits, ids: token_log_probs(logits, ids, temperature)[:, None])[
        ..., 0
    ]


def log_probs_and_entropy(policy: nn.Module, responses: Responses, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs (B, R) as `response_log_probs`, with each step's entropy (B, R) in nats, detached."""

    def both(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.stack([token_log_probs(logits, ids, temperature), entropy(logits, temperature)], dim=-1)

    found = _at_responses(policy, responses, both)
    return found[..., 0], found[..., 1].detach()


def _at_responses(policy: nn.Module, responses: Responses, read: Read) -> Tensor:
    """What `read` finds at response tokens, (B, R, C). The head runs at those positions only."""
    mask = responses.attention_mask
    steps = responses.response_ids.shape[1]
    # One position more than there are responses: the last token predicts what was never sampled.
    found = at_tokens(
        policy,
        read,
        nn.functional.pad(responses.response_ids, (0, 1)),
        nn.functional.pad(responses.response_mask, (0, 1)),
        input_ids=responses.input_ids,
        attention_mask=mask.long(),
        position_ids=position_ids(mask),
        use_cache=False,
        logits_to_keep=steps + 1,
    )
    return found[:, :-1]


def response_values(value: ScalarModel, responses: Responses) -> Tensor:
    """Values (B, R) float32: `values[:, t]` is that of the state before response token t; zero outside the response."""
    values = value(responses.input_ids, responses.attention_mask)
    steps = responses.response_ids.shape[1]
    return values[:, -steps - 1 : -1] * responses.response_mask


def chunks(responses: R, size: int | None, tokens: int | None = None) -> Iterator[R]:
    """`responses` in order, cut as `instructlit.ops.micro_batches.spans` does, each without the columns no row needs.

    Args:
        responses: at least one row.
        size: most rows together.
        tokens: most tokens together, with the padding that is left.
    """
    prompt, response = responses.prompt_mask.sum(dim=1).tolist(), responses.response_mask.sum(dim=1).tolist()

    def padded(start: int, stop: int) -> int:
        return (stop - start) * (max(prompt[start:stop]) + max(response[start:stop]))

    index = torch.arange(len(responses), device=responses.response_ids.device)
    for start, stop in spans(len(responses), size, tokens, padded):
        yield trimmed(responses.rows(index[start:stop]))


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
