"""Our own decoder of Llama's family gives the logits of the models, whichever rows share it and whenever they come."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_helpers import CONFIGS, SHAPE, TEXTS, made, sampled
from stage_helpers import prompt_batch
from torch import Tensor, nn
from transformers import (
    BambaConfig,
    Lfm2Config,
    LlamaConfig,
    MiniMaxConfig,
    MistralConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    RwkvConfig,
)

from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.rollout import decoders, llama
from instructlit.rollout.decoders import LlamaDecoder, ModelDecoder, WholeDecoder, _different, decoder_for
from instructlit.rollout.forward import response_log_probs

OTHERS: dict[str, PretrainedConfig] = {
    "sliding window": MistralConfig(**SHAPE, sliding_window=8),
    "angles by length": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
}

HYBRIDS: dict[str, PretrainedConfig] = {
    "states in some layers": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
    "states that go by the mask": BambaConfig(
        **SHAPE, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4
    ),
    "states that do not": RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, eos_token_id=2),
    "a cache of its own": MiniMaxConfig(
        **SHAPE, head_dim=8, block_size=16, num_local_experts=2, layer_types=["linear_attention", "full_attention"]
    ),
    "no cache": OpenAIGPTConfig(vocab_size=128, n_embd=32, n_layer=2, n_head=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "COLUMNS", 8)  # the cache grows on the way
    monkeypatch.setattr(LlamaDecoder, "tokens_at_once", 8)  # and the prompts are read in three forwards
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
            live = torch.ones_like(tokens, dtype=torch.bool)
            pairs.append((ours.step(tokens, live), theirs.step(tokens, live)))
    assert pairs[0][0].std() > 0.1
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_does_not_compute_is_left_to_the_model(name: str) -> None:
    assert isinstance(decoder_for(made(OTHERS[name]), 1, 8), ModelDecoder)


@pytest.mark.parametrize("name", HYBRIDS)
def test_all_that_a_model_keeps_of_a_row_goes_with_it(name: str) -> None:
    model, prompts = made(HYBRIDS[name]), prompt_batch(["ab", "abcdef", "ab"])
    decoder, tokens = decoder_for(model, 3, 8), torch.tensor([50, 99])
    with torch.no_grad():
        decoder.read(torch.arange(3), prompts.input_ids, prompts.attention_mask)  # a prompt that is there twice, once
        decoder.keep(torch.tensor([1, 2]))
        found = decoder.step(tokens, torch.ones_like(tokens, dtype=torch.bool))
        rows = [[*map(ord, "abcdef"), 50], [*map(ord, "ab"), 99]]
        expected = torch.cat([model(torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_cache_serves_where_states_go_by_the_mask_and_says_what_the_model_does(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(decoder_for(made(HYBRIDS["states that go by the mask"]), 1, 8), ModelDecoder)
    assert not recwarn.list
    step = ModelDecoder.step
    monkeypatch.setattr(ModelDecoder, "step", lambda self, tokens, live: step(self, tokens + 1, live))
    with pytest.warns(UserWarning, match="BambaForCausalLM is decoded without a cache, .* off by .* nats per token"):
        decoder = decoder_for(made(HYBRIDS["states that go by the mask"]), 1, 8)
    assert isinstance(decoder, WholeDecoder)


@pytest.mark.parametrize("name", HYBRIDS)
def test_padding_before_a_row_changes_no_log_prob(name: str) -> None:
    model = made(HYBRIDS[name])
    got = sampled(model, 3, tokens=6)
    torch.testing.assert_close(response_log_probs(model, got, 1.0), got.log_probs, rtol=1e-4, atol=1e-4)
    for i, text in enumerate(TEXTS):
        response = got.response_ids[i][got.response_mask[i]]
        row = torch.cat([torch.tensor([*map(ord, text)]), response])
        logits = model(row[None], use_cache=False).logits[0, len(text) - 1 : -1]
        expected = logits.log_softmax(dim=-1).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(got.log_probs[i][got.response_mask[i]], expected, rtol=1e-4, atol=1e-4)


def adapted(folder: Path, targets: list[str] | str = "all-linear") -> Any:
    """A model under adapters that say something."""
    model = load_causal_lm(Backbone(str(folder), lora=Lora(rank=2, target_modules=targets))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    return model


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("packs", [True, False])
def test_adapters_are_decoded_as_the_model_computes_them(
    packs: bool, targets: list[str] | str, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "can_pack", lambda dtype: packs)
    model, prompts = adapted(tiny_llama_dir, targets), prompt_batch(TEXTS[:4])
    ours, theirs = decoder_for(model, 4, 32), ModelDecoder(model)
    assert isinstance(ours, LlamaDecoder)
    slots, live = torch.arange(4), torch.ones(4, dtype=torch.bool)
    with torch.no_grad():
        got, expected = (
            [d.read(slots, prompts.input_ids, prompts.attention_mask), d.step(torch.tensor([7, 50, 99, 3]), live)]
            for d in (ours, theirs)
        )
        with model.disable_adapter():
            trunk = ModelDecoder(model).read(slots, prompts.input_ids, prompts.attention_mask)
    assert (trunk - expected[0]).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_are_off_merged_or_of_another_kind_are_left_to_the_model(tiny_llama_dir: Path) -> None:
    model = adapted(tiny_llama_dir)
    with model.disable_adapter():
        assert isinstance(decoder_for(model, 1, 8), ModelDecoder)
    model.merge_adapter()
    assert isinstance(decoder_for(model, 1, 8), ModelDecoder)
    model.unmerge_adapter()
    assert isinstance(decoder_for(model, 1, 8), LlamaDecoder)
    on_embedding = adapted(tiny_llama_dir, ["q_proj", "embed_tokens"])
    assert isinstance(decoder_for(on_embedding, 1, 8), ModelDecoder)
    for part in model.modules():
        if hasattr(part, "use_dora"):
            part.use_dora["default"] = True
    assert isinstance(decoder_for(model, 1, 8), ModelDecoder)


@pytest.mark.parametrize("name", ["llama", "sliding window"])
def test_rows_say_the_same_whoever_is_decoded_beside_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made((CONFIGS | OTHERS)[name])
    whole = sampled(model)
    monkeypatch.setattr(LlamaDecoder, "tokens_at_once", 8)
    assert 0 < whole.ended.sum() < len(TEXTS)
    assert whole.texts[0] != whole.texts[4]  # the same prompt twice
    for size in (1, 3, None):
        again = sampled(model, size)
        assert torch.equal(again.response_ids, whole.response_ids)
        torch.testing.assert_close(again.log_probs, whole.log_probs, rtol=1e-4, atol=1e-5)


def test_prompts_that_wait_take_the_slots_of_rows_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = made(CONFIGS["llama"]), []
    step = LlamaDecoder.step

    def counted(self: LlamaDecoder, tokens: Tensor, live: Tensor) -> Tensor:
        steps.append(len(tokens))
        return step(self, tokens, live)

    monkeypatch.setattr(LlamaDecoder, "step", counted)
    lengths = sampled(model, 3, tokens=40).response_mask.sum(dim=1).tolist()
    ends = [0, 0, 0]
    for length in lengths:  # each prompt goes where a slot is free first; its first token comes with reading it
        ends[ends.index(min(ends))] += length - 1
    assert len(steps) == max(ends)
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


def test_a_prompt_that_is_there_twice_is_read_once_and_padding_is_no_token_of_its_id() -> None:
    ids, mask = torch.tensor([[0, 5], [0, 5], [0, 5]]), torch.tensor([[False, True], [True, True], [False, True]])
    rows, masks, inverse = _different(ids, mask)
    assert len(rows) == 2
    assert torch.equal(rows[inverse], ids)
    assert torch.equal(masks[inverse], mask)
