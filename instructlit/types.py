"""The records that pass between the parts. Shapes and the polarity of masks are stated here and nowhere else.

Symbols: B sequences in a batch, T positions, P prompts of a comparison batch, N completions of all of them, L prompt
positions, R response positions. Every mask is boolean and True means "this position counts". Positions that do not
count hold zero (the pad id, for token ids), never a sentinel.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Message = dict[str, str]
"""One turn of a conversation: `{"role": "user" | "assistant" | "system", "content": text}`."""

PromptText = str | list[Message]
"""A prompt as text or as a conversation that ends before the assistant's next turn."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the answer a labeler wrote for it. `weight` is how often the row comes in an epoch."""

    prompt: PromptText
    completion: str
    use_case: str | None = None
    labeler: str | None = None
    user: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """K >= 2 completions of one prompt in one labeler's order.

    `ranks[k]` belongs to `completions[k]`: 1 is best and equal ranks are a tie. `ratings` are 1 (worst) to 7. `weight`
    is how often the row comes in an epoch. `ended` tells which completions ended by themselves: one that was cut at a
    limit has no EOS; None means that all ended.
    """

    prompt: PromptText
    completions: list[str]
    ranks: list[int]
    labeler: str | None = None
    ratings: list[int] | None = None
    flags: list[dict[str, bool]] | None = None
    policy: list[str] | str | None = None
    use_case: str | None = None
    user: str | None = None
    weight: float = 1.0
    ended: list[bool] | None = None

    @property
    def ends(self) -> list[bool]:
        """Whether each completion ended, which is assumed if unknown."""
        return self.ended or [True] * len(self.completions)


@dataclass(unsafe_hash=True)
class Prompt:
    """A prompt waiting for answers.

    Not frozen: where the Trainer's precision is bf16-true Lightning goes through the fields of a batch, and refuses
    frozen ones. Nothing changes one.
    """

    prompt: PromptText
    user: str | None = None
    use_case: str | None = None


@dataclass(frozen=True)
class Text:
    """A document of the pretraining mix."""

    text: str


@dataclass
class Batch:
    """What a dataloader yields: a dataclass whose tensors move together."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`; Lightning calls this. Only a copy to a GPU is not waited for."""
        unwaited = torch.device(device).type == "cuda"
        return self._map(lambda x: x.to(device, non_blocking=unwaited))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; a `DataLoader` with `pin_memory` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in values.items() if isinstance(x, Tensor)})


@dataclass
class TokenBatch(Batch):
    """Right-padded sequences for language modelling.

    `loss_mask[b, t]` is True where token t is a target, to be predicted from the tokens before it.

    Example, prompt "ab", completion "c", one pad: `input_ids = [a, b, c, EOS, 0]`,
    `attention_mask = [1, 1, 1, 1, 0]`, `loss_mask = [0, 0, 1, 1, 0]`.
    """

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    loss_mask: Tensor  # (B, T) bool

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, index: slice | Tensor) -> "TokenBatch":
        """The chosen sequences, cut to the longest of them."""
        width = _width(self.attention_mask[index])
        return TokenBatch(
            self.input_ids[index, :width], self.attention_mask[index, :width], self.loss_mask[index, :width]
        )

    def blank(self) -> "TokenBatch":
        """The same sequences without a target."""
        return replace(self, loss_mask=torch.zeros_like(self.loss_mask))


@dataclass
class ComparisonBatch(Batch):
    """All completions of P prompts, one right-padded sequence (prompt, completion, EOS) each.

    The completions of one prompt are neighbours and never split between batches: all its pairs are seen at once.
    """

    input_ids: Tensor  # (N, T) int64
    attention_mask: Tensor  # (N, T) bool
    response_mask: Tensor  # (N, T) bool: the completion and its EOS
    prompt_index: Tensor  # (N,) int64, 0 .. P-1, ascending
    ranks: Tensor  # (N,) int64, 1 is best
    labelers: list[str | None]  # P

    def __len__(self) -> int:
        return len(self.labelers)

    def prompts(self, start: int, stop: int) -> "ComparisonBatch":
        """The prompts from `start` up to `stop` with all their completions, cut to the longest of them."""
        rows = (self.prompt_index >= start) & (self.prompt_index < stop)
        width = _width(self.attention_mask[rows])
        return ComparisonBatch(
            self.input_ids[rows, :width],
            self.attention_mask[rows, :width],
            self.response_mask[rows, :width],
            self.prompt_index[rows] - start,
            self.ranks[rows],
            self.labelers[start:stop],
        )

    def blank(self) -> "ComparisonBatch":
        """The same completions, all tied, so that there is no pair."""
        return replace(self, ranks=torch.zeros_like(self.ranks))


@dataclass
class PromptBatch(Batch):
    """Left-padded prompts, so that every response starts at the same column."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) bool
    prompts: list[Prompt]  # B

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass
class Responses:
    """Prompts and the responses sampled for them, as ids.

    A response is the sampled tokens up to and including EOS, or up to the length limit.

    Example, prompt "ab" after one pad, response "c" EOS in three columns: `prompt_ids = [0, a, b]`,
    `prompt_mask = [0, 1, 1]`, `response_ids = [c, EOS, 0]`, `response_mask = [1, 1, 0]`, `ended = True`.
    """

    prompts: list[Prompt]  # B
    texts: list[str]  # B responses without special tokens; for people and text rewards, never encoded again
    prompt_ids: Tensor  # (B, L) int64
    prompt_mask: Tensor  # (B, L) bool
    response_ids: Tensor  # (B, R) int64
    response_mask: Tensor  # (B, R) bool
    ended: Tensor  # (B,) bool: the response holds its EOS

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    @property
    def input_ids(self) -> Tensor:
        """Prompt and response in one row, (B, L + R)."""
        return torch.cat([self.prompt_ids, self.response_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """True on prompt and response tokens, (B, L + R)."""
        return torch.cat([self.prompt_mask, self.response_mask], dim=1)

    def rows(self, index: Tensor) -> Self:
        """The rows at `index`, a 1-d int64 tensor."""
        chosen: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            chosen[f.name] = value[index] if isinstance(value, Tensor) else [value[i] for i in index.tolist()]
        return replace(self, **chosen)

    def blank(self) -> Self:
        """The same rows without a response token that counts."""
        return replace(self, response_mask=torch.zeros_like(self.response_mask))


@dataclass
class Generation(Responses):
    """What a generation engine returns."""

    log_probs: Tensor  # (B, R) float32, of the distribution sampled from (temperature included); zero outside the mask


@dataclass
class Rollout(Responses):
    """Sampled responses with all that PPO learns from. `x[:, t]` always belongs to response token t.

    Example with beta 0.1, a response of two tokens in three columns, `old_log_probs = [-1.0, -2.0, 0]`,
    `ref_log_probs = [-1.5, -2.0, 0]` and score 3: `rewards = [-0.05, 3.0, 0]`.
    """

    old_log_probs: Tensor  # (B, R) float32, policy at the rollout
    sampled_log_probs: Tensor  # (B, R) float32, what was drawn from: the same, unless the trainer computed its own
    ref_log_probs: Tensor  # (B, R) float32, frozen reference
    values: Tensor  # (B, R) float32, value model at the rollout
    scores: Tensor  # (B,) float32, from the reward, before the missing-EOS rule
    rewards: Tensor  # (B, R) float32, KL penalty at every token and the ruled score at the last; whitened if asked for
    advantages: Tensor  # (B, R) float32, whitened unless switched off
    returns: Tensor  # (B, R) float32, unwhitened advantages plus values


def _width(attention_mask: Tensor) -> int:
    """Columns that a right-padded mask needs."""
    return int(attention_mask.sum(dim=1).max()) if attention_mask.numel() else 0
