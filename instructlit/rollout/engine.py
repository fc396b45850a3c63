"""Generation engines: from a batch of prompts to sampled ids with the log-probs they were sampled at."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from instructlit.errors import UserError
from instructlit.ops.log_probs import token_log_probs
from instructlit.ops.masking import position_ids
from instructlit.types import Generation, PromptBatch

_REFUSED = {
    "top_k": "it cuts the tail of the softmax",
    "top_p": "it cuts the tail of the softmax",
    "repetition_penalty": "it rescales the logits by what was said before",
    "min_new_tokens": "it forbids EOS for a while",
}


@dataclass
class Sampling:
    """How responses are drawn: from the full softmax at one temperature, as in the paper (p. 42: temperature 1).

    `top_k`, `top_p`, `repetition_penalty` and `min_new_tokens` exist to be refused: each changes the distribution that
    is sampled without entering the log-probs that PPO divides by, so that its ratios would be wrong from the start.

    Args:
        max_new_tokens: most tokens in a response, EOS included.
        temperature: the logits are divided by it, in sampling and in every log-prob.
        greedy: take the likeliest token instead of sampling; for evaluation only, PPO refuses it.
        top_k: refused.
        top_p: refused.
        repetition_penalty: refused.
        min_new_tokens: refused.

    Raises:
        UserError: for a refused option, a temperature that is not positive, or no room for a token.
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
                    f"{option}={getattr(self, option)} is refused: {reason}, and the log-probs do not know of it",
                    where=f"sampling.{option}",
                    expected="sampling from the full softmax",
                    fix=f"remove {option}; use temperature to sharpen or flatten the distribution",
                )
        if self.temperature <= 0:
            raise UserError(
                f"temperature is {self.temperature}",
                where="sampling.temperature",
                expected="a number above 0",
                fix="for greedy decoding in an evaluation set greedy: true",
            )
        if self.max_new_tokens < 1:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}", where="sampling.max_new_tokens", expected="at least 1"
            )


class GenerationEngine(ABC):
    """Draws one response for each prompt. Subclass it and name the subclass by `class_path` to plug in another engine.

    An engine must sample from softmax(logits / temperature) of the weights it is handed, now: nothing kept from an
    earlier call may depend on the weights.
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


class CachedEngine(GenerationEngine):
    """Token by token through the model's own forward with a key-value cache that lives for one call.

    A prompt asked for several samples is read once. A row that has ended leaves the batch and its cache, so that a few
    long responses cost no more than themselves.

    Args:
        batch_size: prompts decoded together; None takes all that are handed over.
    """

    def __init__(self, batch_size: int | None = None):
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None = None,
    ) -> Generation:
        training = model.training
        model.eval()  # dropout off: the log-probs returned must be those of the model PPO updates
        try:
            size = self.batch_size or max(len(prompts), 1)
            parts = [
                self._decode(model, ids, mask, sampling, tokenizer, generator)
                for ids, mask in zip(prompts.input_ids.split(size), prompts.attention_mask.split(size), strict=True)
            ]
        finally:
            model.train(training)
        width = max(ids.shape[1] for ids, _ in parts)
        response_ids = torch.cat([_widen(ids, width, eos_and_pad(tokenizer)[1]) for ids, _ in parts])
        log_probs = torch.cat([_widen(log_probs, width, 0) for _, log_probs in parts])
        return as_generation(prompts, response_ids, log_probs, tokenizer)

    @staticmethod
    def _decode(
        model: nn.Module,
        ids: Tensor,
        mask: Tensor,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Responses (b, r) and their log-probs (b, r); r stops where every row has ended."""
        eos, pad = eos_and_pad(tokenizer)
        logits, cache = _read_prompts(model, ids, mask)
        positions = position_ids(mask)[:, -1:]
        response_ids = ids.new_full((len(ids), sampling.max_new_tokens), pad)
        log_probs = torch.zeros_like(response_ids, dtype=torch.float32)
        live = torch.arange(len(ids), device=ids.device)  # the rows still decoded
        for step in range(sampling.max_new_tokens):
            if sampling.greedy:
                token = logits.argmax(-1)
            else:  # chance for all rows, ended ones too: when a row leaves must not change what the others say
                token = draw(logits, sampling.temperature, chance(len(ids), ids.device, generator)[live])
            response_ids[live, step] = token
            log_probs[live, step] = token_log_probs(logits[:, None], token[:, None], sampling.temperature)[:, 0]
            going = (token != eos).nonzero()[:, 0]
            if not len(going) or step + 1 == sampling.max_new_tokens:
                break
            if len(going) < len(live):
                cache.batch_select_indices(going)
                live, token, mask, positions = live[going], token[going], mask[going], positions[going]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            positions = positions + 1
            out = model(
                input_ids=token[:, None],
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits, cache = out.logits[:, -1], out.past_key_values
        return response_ids[:, : step + 1], log_probs[:, : step + 1]


def _read_prompts(model: nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    """Logits (b, V) after each prompt, and the cache of b rows; a prompt that is there several times is read once."""
    rows, inverse = torch.unique(torch.cat([mask.long(), ids], dim=1), dim=0, return_inverse=True)
    once = len(rows) < len(ids)
    if once:
        mask, ids = rows[:, : ids.shape[1]].bool(), rows[:, ids.shape[1] :]
    out = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=position_ids(mask),
        use_cache=True,
        logits_to_keep=1,
    )
    logits, cache = out.logits[:, -1], out.past_key_values
    if once:
        cache.batch_select_indices(inverse)
        logits = logits[inverse]
    return logits, cache


def eos_and_pad(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The two ids an engine needs; `load_tokenizer` has seen to it that both are there."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int)
    assert isinstance(pad, int)
    return eos, pad


def chance(rows: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(rows, 1) float64, uniform in [0, 1): what `draw` turns into ids. None takes torch's global generator."""
    return torch.rand(rows, 1, dtype=torch.float64, device=device, generator=generator)


def draw(logits: Tensor, temperature: float, chance: Tensor) -> Tensor:
    """One id a row from softmax(logits / temperature), by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        temperature: above 0.
        chance: (B, 1) float64, uniform in [0, 1), as `chance` gives it.

    Returns:
        (B,) int64. The sums run in float64, so that the last of 100,000 tokens keeps its exact share.
    """
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True).clamp_max(logits.shape[1] - 1)[:, 0]


def as_generation(
    prompts: PromptBatch, response_ids: Tensor, log_probs: Tensor, tokenizer: PreTrainedTokenizerBase
) -> Generation:
    """Masks and texts for sampled ids: a response counts up to and with its first EOS, whatever the pad id is.

    Args:
        response_ids: (B, R) int64; anything may follow the first EOS.
        log_probs: (B, R).
    """
    eos, pad = eos_and_pad(tokenizer)
    is_eos = response_ids == eos
    response_mask = (is_eos.cumsum(dim=1) - is_eos.long()) == 0
    ended = is_eos.any(dim=1)
    texts = tokenizer.batch_decode(
        [ids[mask].tolist() for ids, mask in zip(response_ids, response_mask, strict=True)], skip_special_tokens=True
    )
    return Generation(
        prompts=prompts.prompts,
        texts=[text.strip() for text in texts],
        prompt_ids=prompts.input_ids,
        prompt_mask=prompts.attention_mask,
        response_ids=response_ids.masked_fill(~response_mask, pad),
        response_mask=response_mask,
        ended=ended,
        log_probs=log_probs.float() * response_mask,
    )


def _widen(x: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[1]), value=value)
