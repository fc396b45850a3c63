"""Small models of Llama's family whose weights hide nothing, and what an engine samples from them."""

from typing import Any

import torch
from conftest import EOS_ID, make_char_tokenizer
from stage_helpers import TINY_SHAPE, prompt_batch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from instructlit.rollout import CachedEngine, Sampling
from instructlit.types import Generation

SHAPE: dict[str, Any] = TINY_SHAPE | {
    "vocab_size": 128,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": EOS_ID,
    "pad_token_id": 0,
}
SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama 3": LlamaConfig(**SHAPE, rope_parameters=SCALED, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}
TEXTS = ["ab", "abcdef", "x", "hello there", "ab", "q", "one two", "z"]
TOKENIZER = make_char_tokenizer()


def made(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms and biases of 1 and 0 would hide that they are left out
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.get_output_embeddings().weight[EOS_ID] *= 4  # said now and then
    return model


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(model: nn.Module, size: int | None = None, tokens: int = 24) -> Generation:
    return CachedEngine(size).generate(model, prompt_batch(TEXTS), Sampling(tokens), TOKENIZER, generator())
