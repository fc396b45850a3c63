"""The trainer's forward passes over responses: log-probs from a policy, values from a value model."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from instructlit.models.scalar import ScalarModel
from instructlit.models.token_scores import Read, at_tokens
from instructlit.ops.log_probs import token_log_probs, token_log_probs_and_entropy
from instructlit.ops.micro_batches import computed_tokens, spans
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
        return torch.stack(token_log_probs_and_entropy(logits, ids, temperature), dim=-1)

    found = _at_responses(policy, responses, both)
    return found[..., 0], found[..., 1].detach()


def _at_responses(policy: nn.Module, responses: Responses, read: Read) -> Tensor:
    """What `read` finds at response tokens, (B, R, C). The head runs at those positions only."""
    # One position more than there are responses: the last token predicts what was never sampled.
    found = at_tokens(
        policy,
        read,
        responses.input_ids,
        responses.attention_mask,
        nn.functional.pad(responses.response_ids, (0, 1)),
        nn.functional.pad(responses.response_mask, (0, 1)),
    )
    return found[:, :-1]


def response_values(value: ScalarModel, responses: Responses) -> Tensor:
    """Values (B, R) float32: `values[:, t]` is that of the state before response token t; zero outside the response."""
    steps = responses.response_ids.shape[1]
    wanted = nn.functional.pad(responses.response_mask, (responses.input_ids.shape[1] - steps - 1, 1))
    values = value(responses.input_ids, responses.attention_mask, wanted=wanted)
    return values[:, -steps - 1 : -1]


class Chunks(Generic[R]):
    """Responses a few at a time, those of like length together and without the columns that none of them needs.

    Prompts and answers differ in length, so that in one piece most of a batch is padding. The order in which parts are
    computed changes neither a sum over them nor, with `joined`, what belongs to which row.

    Args:
        responses: B rows, one at least.
        size: the most rows of a part; with neither limit all go at once, in their own order.
        tokens: the most tokens of a part; a longer row goes alone.
        packed: whether the models leave out padding; else what is left of it in a part counts.
    """

    def __init__(self, responses: R, size: int | None, tokens: int | None = None, *, packed: bool = False):
        self.responses = responses
        rows = len(responses)
        self._order = torch.arange(rows, device=responses.response_ids.device)
        if (size is not None and size < rows) or tokens is not None:
            self._order = responses.attention_mask.sum(dim=1).argsort(stable=True)
        parts = (mask.sum(dim=1)[self._order].tolist() for mask in (responses.prompt_mask, responses.response_mask))
        self._spans = list(spans(rows, size, tokens, computed_tokens(*parts, packed=packed)))

    def __iter__(self) -> Iterator[R]:
        return (trimmed(self.responses.rows(self._order[start:stop])) for start, stop in self._spans)

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
