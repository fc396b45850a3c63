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


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 32
    tokenizer = load_tokenizer(work.model)
    with open(work.data, encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in islice((x for x in lines if x.strip()), size)]
    rows = [tokenizer(text + text)["input_ids"][:PROMPT] for text in texts]
    if len(rows) < size or any(len(row) < PROMPT for row in rows):
        raise UserError(
            f"{len(rows)} prompts, the shortest of {min(map(len, rows), default=0)} tokens twice over",
            where="--data",
            expected=f"{size} prompts of {PROMPT // 2} tokens at least",
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
        if work.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    tokens = int(generation.response_mask.sum())
    best = min(seconds[1:])
    return {
        "seconds": round(best, 4),
        "prep_s": round(prepared, 2),
        "all_s": [round(s, 4) for s in seconds],
        "new_tokens": tokens,
        "new_tokens_per_s": round(tokens / best, 1),
        "ms_per_step": round(1000 * best / work.max_new_tokens, 3),
    }


def _without_end(tokenizer: Any) -> Any:
    """The tokenizer with an EOS that no model can say, so that every response has the same length."""

    class Endless(type(tokenizer)):
        eos_token_id = -1

    endless = copy.copy(tokenizer)
    endless.__class__ = Endless
    return endless
