"""Our own decoder of Llama's family gives the logits of the models, whichever rows share it and whenever they come."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, make_char_tokenizer
from stage_helpers import TINY_SHAPE, prompt_batch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.rollout import CachedEngine, Sampling, decoders, llama
from instructlit.rollout.decoders import LlamaDecoder, ModelDecoder, decoder_for
from instructlit.rollout.forward import response_log_probs
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
OTHERS: dict[str, PretrainedConfig] = {
    "sliding window": MistralConfig(**SHAPE, sliding_window=8),
    "angles by length": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
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


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "COLUMNS", 8)  # the cache grows on the way
    monkeypatch.setattr(decoders, "TOKENS_AT_ONCE", 8)  # and the prompts are read in three forwards
    model, prompts = made(CONFIGS[name]), prompt_batch(TEXTS[:4])
    ours, theirs = decoder_for(model, 4, 32), ModelDecoder(model)
    assert isinstance(ours, LlamaDecoder)
    slots, kept = torch.arange(4), torch.tensor([0, 3])
    with torch.no_grad():
        pairs = [tuple(d.read(slots, prompts.input_ids, prompts.attention_mask) for d in (ours, theirs))]
        for step in range(12):
            tokens = torch.tensor([7, 50 + step, 99, 3 * step])
            if step == 6:
                ours.keep(kept)
                theirs.keep(kept)
            tokens = tokens if step < 6 else tokens[kept]
            pairs.append((ours.step(tokens), theirs.step(tokens)))
    assert pairs[0][0].std() > 0.1
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_does_not_compute_is_left_to_the_model(name: str, tiny_llama_dir: Path) -> None:
    assert isinstance(decoder_for(made(OTHERS[name]), 1, 8), ModelDecoder)
    adapted = load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(rank=2))).eval()
    assert isinstance(decoder_for(adapted, 1, 8), ModelDecoder)


@pytest.mark.parametrize("name", ["llama", "sliding window"])
def test_rows_say_the_same_whoever_is_decoded_beside_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made((CONFIGS | OTHERS)[name])
    whole = sampled(model)
    monkeypatch.setattr(decoders, "TOKENS_AT_ONCE", 8)
    assert 0 < whole.ended.sum() < len(TEXTS)
    assert whole.texts[0] != whole.texts[4]  # the same prompt twice
    for size in (1, 3, None):
        again = sampled(model, size)
        assert torch.equal(again.response_ids, whole.response_ids)
        torch.testing.assert_close(again.log_probs, whole.log_probs, rtol=1e-4, atol=1e-5)


def test_prompts_that_wait_take_the_slots_of_rows_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = made(CONFIGS["llama"]), []
    step = LlamaDecoder.step

    def counted(self: LlamaDecoder, tokens: Tensor) -> Tensor:
        steps.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(LlamaDecoder, "step", counted)
    lengths = sampled(model, 3, tokens=40).response_mask.sum(dim=1).tolist()
    ends = [0, 0, 0]
    for length in lengths:  # each prompt goes where a slot is free first
        ends[ends.index(min(ends))] += length
    assert len(steps) == max(ends) - 1
    assert len(steps) < sum(max(lengths[i : i + 3]) for i in (0, 3, 6)) - 3
    assert steps[0] == 3


def test_16_bits_by_autocast_stay_within_the_bound_of_the_self_check(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.no_grad():
        got = sampled(model)
        own = response_log_probs(model.eval(), got, 1.0)
    gap = (own - got.log_probs).abs()[got.response_mask]
    assert gap.mean() < 2e-2
    assert next(model.parameters()).dtype == torch.float32
    exact = response_log_probs(model, got, 1.0)
    assert (exact - got.log_probs).abs().max() > 1e-5  # 16 bits they were


def test_a_reference_in_16_bits_is_decoded_in_them(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), dtype="bfloat16"))
    got = sampled(model)
    gap = (response_log_probs(model.eval(), got, 1.0) - got.log_probs).abs()[got.response_mask]
    assert gap.mean() < 2e-2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packs", [False, True])
def test_layers_in_16_bits_stand_one_beside_the_other_packed_or_not(
    packs: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packs and not llama.can_pack(torch.bfloat16):
        pytest.skip("torch has no oneDNN with bfloat16 here")
    monkeypatch.setattr(llama, "can_pack", lambda dtype: packs)
    torch.manual_seed(0)
    layers = [nn.Linear(24, width, bias=bias).bfloat16() for width in (40, 16, 8)]
    for rows in (1, 5, 300):
        x = torch.randn(rows, 24)
        with torch.no_grad():
            got = llama.Linear(layers, torch.bfloat16)(x)
            expected = torch.cat([layer(x.bfloat16()) for layer in layers], dim=-1)
        torch.testing.assert_close(got, expected)


def test_weights_are_packed_only_where_torch_has_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not llama.can_pack(torch.bfloat16)
    assert not llama.can_pack(torch.float32)
