"""Generation engines: from a batch of prompts to sampled ids with the log-probs they were sampled at."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from instructlit.data.tokenizers import decoded
from instructlit.errors import UserError, class_path, raised_at, require
from instructlit.rollout.decoders import decoder_for
from instructlit.rollout.drawing import chance, draw
from instructlit.rollout.graphs import Replayed
from instructlit.types import Generation, PromptBatch

_REFUSED = {
    "top_k": "it cuts the tail of the softmax",
    "top_p": "it cuts the tail of the softmax",
    "repetition_penalty": "it rescales the logits of tokens that occurred before",
    "min_new_tokens": "it forbids EOS for a while",
}

T = TypeVar("T")

STEPS_UNASKED = 8
"""Tokens of every row that a GPU decodes before it is asked which rows have ended."""


@dataclass
class Sampling:
    """How responses are drawn: from the full softmax at one temperature, as in the paper (p. 42: temperature 1).

    `top_k`, `top_p`, `repetition_penalty` and `min_new_tokens` exist to be refused: each changes the distribution that
    is sampled without entering the log-probs that PPO divides by, so that its ratios would be wrong from the start.

    Args:
        max_new_tokens: most tokens in a response, EOS included.
        temperature: the logits are divided by it, in sampling and in every log-prob.
        greedy: take the most likely token instead of sampling; for evaluation only, PPO refuses it.
        top_k: refused.
        top_p: refused.
        repetition_penalty: refused.
        min_new_tokens: refused.

    Raises:
        UserError: for a refused option, a temperature that is not positive and finite, or no room for a token.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    greedy: bool = False
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    min_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for option, reason in _REFUSED.items():
            if getattr(self, option) is not None:
                raise UserError(
                    f"{option}={getattr(self, option)} is refused: {reason}, which the log-probs do not reflect",
                    where=f"sampling.{option}",
                    expected="sampling from the full softmax",
                    fix=f"remove {option}; use temperature to sharpen or flatten the distribution",
                )
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}",
                where="sampling.temperature",
                expected="a finite number above 0",
                fix="for greedy decoding in an evaluation set greedy: true",
            )
        require("a whole number above 0", "sampling.", max_new_tokens=self.max_new_tokens)


class GenerationEngine(ABC):
    """Draws one response for each prompt. Subclass it and name the subclass by `class_path` to plug in another engine.

    An engine must sample from softmax(logits / temperature) of the weights it is handed, now: nothing kept from an
    earlier call may depend on the weights. One with its own copy of the weights updates it in `sync`.
    """

    def sync(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - most need none
        """Take over the current weights; called on every rank before the first `generate` after they changed.

        Args:
            model: the policy, with its adapters; sharded over the ranks if the strategy does so.
            tokenizer: of the policy.
        """

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None = None,
    ) -> Generation:
        """Sample responses.

        Args:
            model: the causal language model, on the device of the prompts.
            prompts: B left-padded prompts, (B, L).
            sampling: length limit and temperature.
            tokenizer: gives the EOS and pad ids and turns the responses into text.
            generator: source of randomness on the same device; None takes torch's global one.

        Returns:
            B responses, R at most `sampling.max_new_tokens`.
        """


def called(engine: GenerationEngine, method: str, call: Callable[[], T]) -> T:
    """What a call into an engine gives. An error of one of the user's own ends the run as a reward's does: in all
    processes, and what was learnt is kept.

    Raises:
        UserError: it raises something, memory that is full aside.
    """
    try:
        return call()
    except (UserError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(engine).__module__.startswith("instructlit."):
            raise
        raise UserError(
            f"raised {type(error).__name__}: {error} ({raised_at(error, type(engine))})",
            where=f"{class_path(type(engine))}.{method}",
            fix="INSTRUCTLIT_DEBUG=1 shows the stack trace",
        ) from error


def checked_generation(engine: GenerationEngine, prompts: PromptBatch, found: Any) -> Generation:
    """What an engine gave for B prompts, which may be the user's own.

    Raises:
        UserError: it is no `Generation` of B rows, or its tensors do not go together.
    """
    if not isinstance(found, Generation):
        raise _misfit(engine, f"returned a {type(found).__name__}", "an instructlit.types.Generation")
    rows = len(prompts)
    for name, value in vars(found).items():
        if len(value) != rows:
            raise _misfit(engine, f"returned {len(value)} {name} for {rows} prompts", "one for each prompt, in order")
    ids, mask, log_probs = found.response_ids, found.response_mask, found.log_probs
    if mask.dtype != torch.bool or not ids.shape == mask.shape == log_probs.shape:
        shapes = (
            f"ids {tuple(ids.shape)}, log-probs {tuple(log_probs.shape)} and a mask {tuple(mask.shape)} {mask.dtype}"
        )
        raise _misfit(engine, f"returned {shapes}", "one shape for the three, and a mask of torch.bool")
    return found


def _misfit(engine: GenerationEngine, what: str, expected: str) -> UserError:
    fix = "instructlit.rollout.engine.as_generation makes one of ids and log-probs"
    return UserError(what, where=f"{class_path(type(engine))}.generate", expected=expected, fix=fix)


class CachedEngine(GenerationEngine):
    """Token by token with a cache of keys and values that lives for one call, by the decoder that fits the model.

    A prompt asked for several samples is read once. A row that has ended leaves, and if the decoder allows it a waiting
    prompt takes its place, so that a few long responses cost no more than themselves. A row's response does not depend
    on which others are decoded with it.

    Args:
        batch_size: prompts decoded together; None takes all.
    """

    def __init__(self, batch_size: int | None = None):
        require("a whole number above 0", "engine.", batch_size=batch_size)
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None = None,
        further: Sequence[int] = (),
    ) -> Generation:
        """As `GenerationEngine.generate`, and `further` ids end a response as EOS does (`further_ends`). PPO has none:
        EOS is the end that its policy is trained to give and that other engines stop at."""
        training = model.training
        model.eval()  # dropout off: the log-probs returned must be those of the model PPO updates
        try:
            end = eos_and_pad(tokenizer)
            decoding = _Decoding(model, prompts, self.batch_size, sampling, end, generator, further)
            response_ids, log_probs = decoding.run()
        finally:
            model.train(training)
        return as_generation(prompts, response_ids, log_probs, tokenizer, further)


class _Decoding:
    """Prompts on their way through a decoder's slots.

    Args:
        model: the language model, in evaluation mode.
        prompts: B of them.
        size: most slots; None gives each prompt its own.
        sampling: length limit and temperature.
        end: the ids of EOS and padding.
        generator: source of randomness; all of it is drawn beforehand, a number for each possible token, so that
            which rows are decoded together, and when one leaves, does not affect the others.
        further: ids that end a response besides EOS.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        size: int | None,
        sampling: Sampling,
        end: tuple[int, int],
        generator: torch.Generator | None,
        further: Sequence[int],
    ):
        ids, rows = prompts.input_ids, len(prompts)
        self.prompts, self.sampling, self.ends = prompts, sampling, ids.new_tensor([end[0], *further])
        self.slots = max(1, min(size or rows, rows))
        self.decoder = decoder_for(model, self.slots, ids.shape[1] + sampling.max_new_tokens)
        self.response_ids = ids.new_full((rows, sampling.max_new_tokens), end[1])
        self.log_probs = torch.zeros_like(self.response_ids, dtype=torch.float32)
        self.lengths = ids.new_zeros(rows)
        self.chance = None if sampling.greedy else chance(rows, ids.device, generator, sampling.max_new_tokens)
        self.begun = 0  # rows that have been given a slot
        self._lay_slots(self.slots)

    def run(self) -> tuple[Tensor, Tensor]:
        """Responses (B, R) and their log-probs (B, R); R is the longest's length."""
        # Autograd's bookkeeping, switched off by `no_grad`, is left out: some 5 % of a small model's time.
        with torch.inference_mode() if self.decoder.own else nullcontext():
            step = Replayed(self._step, self.lengths.device) if self.decoder.replays else self._step
            while left := self._fill():
                # What a device has computed is asked for once in a while only: the question waits for all of it.
                for _ in range(min(left, STEPS_UNASKED) if self.decoder.replays else 1):
                    step()
        width = int(self.lengths.max()) if len(self.lengths) else 0
        return self.response_ids[:, :width], self.log_probs[:, :width]

    def _lay_slots(self, slots: int) -> None:
        # the row in a slot, how many tokens that row has, and its last one
        self.row, self.said, self.tokens = (self.lengths.new_zeros(slots) for _ in range(3))
        self.live = torch.zeros(slots, dtype=torch.bool, device=self.lengths.device)

    def _fill(self) -> int:
        """Let waiting prompts take the free slots and give a first token; returns how many more a row may have."""
        if not self.decoder.replays:
            self._narrow()
        while len(slots := self._free()):
            rows = torch.arange(self.begun, self.begun + len(slots), device=slots.device)
            self.begun += len(slots)
            self.row[slots], self.said[slots], self.live[slots] = rows, 0, True
            self._say(slots, self.decoder.read(slots, self.prompts.input_ids[rows], self.prompts.attention_mask[rows]))
        return int(((self.sampling.max_new_tokens - self.said) * self.live).max())

    def _free(self) -> Tensor:
        """The slots (n,) that prompts which wait may take now."""
        waiting = len(self.lengths) - self.begun
        if waiting and not self.decoder.refills and not self.live.any():
            self._lay_slots(min(self.slots, waiting))
        elif not waiting or not self.decoder.refills:
            return self.row[:0]
        return (~self.live).nonzero()[:waiting, 0]

    def _step(self) -> None:
        """One token of every slot."""
        self._say(slice(None), self.decoder.step(self.tokens, self.live))

    def _say(self, slots: Tensor | slice, logits: Tensor) -> None:
        """The next token of some slots (n,), by their logits (n, V). Nothing is asked of the device."""
        row, said, live = self.row[slots], self.said[slots], self.live[slots]
        chance = None if self.chance is None else self.chance[row, said, None]
        tokens, log_probs = draw(logits, self.sampling.temperature, chance)
        # A free slot produces tokens too; they are ignored.
        self.response_ids[row, said] = torch.where(live, tokens, self.response_ids[row, said])
        self.log_probs[row, said] = torch.where(live, log_probs, self.log_probs[row, said])
        self.lengths[row] = torch.where(live, said + 1, self.lengths[row])
        last = self.sampling.max_new_tokens - 1
        self.tokens[slots] = tokens
        self.live[slots] = live & ~_among(tokens, self.ends) & (said < last)
        self.said[slots] = (said + 1).clamp_max(last)

    def _narrow(self) -> None:
        """Keep only the live slots, if enough are free for good that moving the rest pays."""
        live = int(self.live.sum())
        if not live or (self.begun < len(self.lengths) and self.decoder.refills) or live > 0.75 * len(self.live):
            return
        kept = self.live.nonzero()[:, 0]
        self.decoder.keep(kept)
        self.row, self.said, self.tokens, self.live = (x[kept] for x in (self.row, self.said, self.tokens, self.live))


def eos_and_pad(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The two ids an engine needs; `load_tokenizer` makes sure that both exist."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int)
    assert isinstance(pad, int)
    return eos, pad


def further_ends(model: nn.Module) -> list[int]:
    """The ids that end a response of a model which is used as it is, as its generation config names them: models that
    speak in turns may have the end of a turn there alone."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return named if isinstance(named, list) else [] if named is None else [named]


def as_generation(
    prompts: PromptBatch,
    response_ids: Tensor,
    log_probs: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    further: Sequence[int] = (),
) -> Generation:
    """Masks and texts for sampled ids: a response counts up to and with its first EOS, whatever the pad id is.

    Args:
        response_ids: (B, R) int64; anything may follow the first EOS.
        log_probs: (B, R).
        further: ids that count as EOS does.

    Raises:
        UserError: the log-prob of a token is NaN or infinite: a broken model's samples are not responses.
    """
    eos, pad = eos_and_pad(tokenizer)
    is_end = _among(response_ids, response_ids.new_tensor([eos, *further]))
    response_mask = (is_end.cumsum(dim=1) - is_end.long()) == 0
    ended = is_end.any(dim=1)
    log_probs = log_probs.float().masked_fill(~response_mask, 0.0)
    if not torch.isfinite(log_probs).all():
        raise UserError(
            "a token was sampled whose log-prob is NaN or infinite",
            expected="finite logits",
            fix="check the model's weights: some of them may be NaN, infinite or far too large",
        )
    said = zip(response_ids, response_mask & ~is_end, strict=True)
    texts = [decoded(tokenizer, ids[mask].tolist()) for ids, mask in said]
    return Generation(
        prompts=prompts.prompts,
        texts=[text.strip() for text in texts],
        prompt_ids=prompts.input_ids,
        prompt_mask=prompts.attention_mask,
        response_ids=response_ids.masked_fill(~response_mask, pad),
        response_mask=response_mask,
        ended=ended,
        log_probs=log_probs,
    )


def _among(ids: Tensor, chosen: Tensor) -> Tensor:
    """Which ids (...) are among the chosen (n,): bool, of the shape of `ids`."""
    # `torch.isin` may sort, and then asks the device for a size, which a CUDA graph does not allow.
    return (ids[..., None] == chosen).any(dim=-1)
