"""The trainer's forward passes over responses: log-probs from a policy, values from a value model."""

from collections.abc import Iterator
from typing import Generic, TypeVar

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


class Chunks(Generic[R]):
    """Responses a few at a time, those of like length together and without the columns that none of them needs.

    Prompts and answers differ in length, so that in one piece most of a batch is padding. The order in which parts are
    computed changes neither a sum over them nor, with `joined`, what belongs to which row.

    Args:
        responses: B rows.
        size: the most rows of a part; None takes all at once, in their own order.
    """

    def __init__(self, responses: R, size: int | None):
        self.responses = responses
        rows = len(responses)
        order = torch.arange(rows, device=responses.response_ids.device)
        if size is not None and size < rows:
            order = responses.attention_mask.sum(dim=1).argsort(stable=True)
        self._order, self._size = order, size or max(rows, 1)

    def __iter__(self) -> Iterator[R]:
        return (trimmed(self.responses.rows(index)) for index in self._order.split(self._size))

    def joined(self, parts: list[Tensor]) -> Tensor:
        """What was computed for each part, (b,) or (b, r), as (B,) or (B, R) in the rows' order; 0 where cut."""
        width = self.responses.response_ids.shape[1]
        whole = [part if part.dim() == 1 else nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat(whole)[self._order.argsort()]


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
