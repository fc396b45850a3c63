"""Generation: 32 prompts of 32 tokens, sampled from the full softmax to the length limit."""

import copy
import json
import time
from itertools import islice
from typing import Any

import torch

from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError
from instructlit.models.backbone import load_causal_lm
from instructlit.rollout import CachedEngine, Sampling
from instructlit.types import Prompt, PromptBatch

from .work import Work

PROMPT, REPEATS = 32, 4
COPIED, COPIES = 1 << 30, 10
"""Bytes of the copy that measures a GPU's bandwidth, far more than its caches hold, and copies per timing."""


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 32
    bandwidth = _copy_bandwidth(work) if work.device == "cuda" else None
    tokenizer = load_tokenizer(work.model, pad_with_eos=True)
    with open(work.data, encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in islice((x for x in lines if x.strip()), size)]
    rows = [tokenizer(text + text)["input_ids"][:PROMPT] for text in texts]
    if len(rows) < size or any(len(row) < PROMPT for row in rows):
        raise UserError(
            f"{len(rows)} prompts, the shortest with {min(map(len, rows), default=0)} tokens when repeated twice",
            where="--data",
            expected=f"{size} prompts of at least {PROMPT // 2} tokens",
        )
    ids = torch.tensor(rows, device=work.device)
    prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), [Prompt(text) for text in texts])
    backbone = work.backbone(work.model, "bfloat16" if "bf16" in work.precision else "float32")
    model: Any = load_causal_lm(backbone, frozen=True)
    model.to(work.device)
    endless = _without_end(tokenizer)
    generator = torch.Generator(work.device).manual_seed(work.seed)
    sampling = Sampling(work.max_new_tokens)
    prepared = time.perf_counter() - work.began
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        generation = CachedEngine().generate(model, prompts, sampling, endless, generator)
        seconds.append(work.now() - began)
    tokens = int(generation.response_mask.sum())
    best = min(seconds[1:])
    return {
        "seconds": round(best, 4),
        "prep_s": round(prepared, 2),
        "all_s": [round(s, 4) for s in seconds],
        "new_tokens": tokens,
        "new_tokens_per_s": round(tokens / best, 1),
        "ms_per_step": round(1000 * best / work.max_new_tokens, 3),
        **_traffic(model, size, work, best / work.max_new_tokens, bandwidth),
    }


def _traffic(model: Any, rows: int, work: Work, seconds: float, bandwidth: float | None) -> dict[str, Any]:
    """Bytes that a step has to read, and on a GPU how close it comes to the memory bandwidth.

    Args:
        model: the language model in the dtype it decodes in.
        rows: number of rows decoded together.
        work: the options.
        seconds: seconds per step.
        bandwidth: of the GPU's memory, in bytes a second.
    """
    needed = bytes_per_step(model, rows, PROMPT + work.max_new_tokens / 2)
    if bandwidth is None:
        return {"bytes_per_step": needed}
    return {
        "bytes_per_step": needed,
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "roof_share": round(needed / seconds / bandwidth, 3),
    }


def bytes_per_step(model: Any, rows: int, tokens: float) -> int:
    """The weights once, and the keys and values of every row.

    Args:
        model: a causal language model; a step reads next to nothing of an embedding that is not also its head.
        rows: number of rows decoded together.
        tokens: tokens per row, prompt included.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = sum(p.nbytes for p in model.parameters() if p is not embedding or p is head)
    return weights + round(2 * config.num_hidden_layers * heads * size * head.itemsize * rows * tokens)


def _copy_bandwidth(work: Work) -> float:
    """Bytes a second, read and written, of the best of a few copies within the GPU's memory."""
    source = torch.randint(256, (COPIED,), dtype=torch.uint8, device=work.device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(REPEATS):
        began = work.now()
        for _ in range(COPIES):
            target.copy_(source)
        seconds.append((work.now() - began) / COPIES)
    del source, target
    torch.cuda.reset_peak_memory_stats()  # the peak reported is the model's
    return 2 * COPIED / min(seconds[1:])


def _without_end(tokenizer: Any) -> Any:
    """The tokenizer with an EOS that no model can sample, so that every response has the same length."""

    class Endless(type(tokenizer)):
        eos_token_id = -1

    endless = copy.copy(tokenizer)
    endless.__class__ = Endless
    return endless
