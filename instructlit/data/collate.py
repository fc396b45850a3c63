"""Collates lists of encoded rows into padded batches. Masks come from row lengths, never from comparing ids with the
pad id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from instructlit.data.tokenization import Encoded
from instructlit.types import ComparisonBatch, Prompt, PromptBatch, TokenBatch


@dataclass(frozen=True)
class EncodedComparison:
    """The K sequences of one prompt with their ranks."""

    completions: list[Encoded]
    ranks: list[int]
    labeler: str | None


@dataclass(frozen=True)
class EncodedPrompt:
    """The ids of one prompt, with the record it came from."""

    ids: list[int]
    prompt: Prompt


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Rows of different length as `(ids (B, T) int64, mask (B, T) bool)`; the mask is True on the rows' own tokens."""
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(row, dtype=torch.int64)
        mask[i, place] = True
    return ids, mask


def _response_mask(rows: Sequence[Encoded], mask: Tensor) -> Tensor:
    starts = torch.tensor([row.start for row in rows])
    return mask & (torch.arange(mask.shape[1]) >= starts[:, None])


def collate_tokens(rows: Sequence[Encoded], pad_id: int) -> TokenBatch:
    """Examples or blocks of text as a right-padded `TokenBatch`."""
    ids, mask = pad([row.ids for row in rows], pad_id, "right")
    return TokenBatch(ids, mask, _response_mask(rows, mask))


def collate_comparisons(rows: Sequence[EncodedComparison], pad_id: int) -> ComparisonBatch:
    """The completions of several prompts, grouped by prompt, as a right-padded `ComparisonBatch`."""
    flat = [completion for row in rows for completion in row.completions]
    ids, mask = pad([completion.ids for completion in flat], pad_id, "right")
    return ComparisonBatch(
        input_ids=ids,
        attention_mask=mask,
        response_mask=_response_mask(flat, mask),
        prompt_index=torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(row.completions) for row in rows])
        ),
        ranks=torch.tensor([rank for row in rows for rank in row.ranks]),
        labelers=[row.labeler for row in rows],
    )


def collate_prompts(rows: Sequence[EncodedPrompt], pad_id: int) -> PromptBatch:
    """Prompts as a left-padded `PromptBatch`."""
    ids, mask = pad([row.ids for row in rows], pad_id, "left")
    return PromptBatch(ids, mask, [row.prompt for row in rows])


def padded(collate: Callable[..., Any], pad_id: int) -> Callable[[Sequence[Any]], Any]:
    """A collate function with its pad id, in a form that can be sent to worker processes."""
    return partial(collate, pad_id=pad_id)
