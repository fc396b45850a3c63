"""Rows one after the other without padding give the numbers and gradients of rows with padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packed_helpers import (
    BATCH,
    CONFIGS,
    GROUPED,
    assert_same_gradient,
    assert_values_as_padded,
    gradient,
    model_folder,
    padded,
)
from stage_helpers import token_batch
from torch import nn
from transformers import AutoModelForCausalLM, DogeConfig, MistralConfig, PretrainedConfig

from instructlit.models import packed, segments
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.packed import SEGMENTS, Packed, can_pack, layout
from instructlit.models.segments import ALONE
from instructlit.models.token_scores import target_log_probs
from instructlit.ops.micro_batches import computed_tokens
from instructlit.types import TokenBatch

folder = pytest.fixture(model_folder, params=["llama", "gpt2", "gpt_neox", "qwen3"], name="folder")


@pytest.fixture(autouse=True)
def packed_whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "WORTH_PACKING", -1)


def test_rows_follow_one_another_and_positions_begin_anew() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9], [4, 0, 0]])
    row = Packed.of(ids, torch.tensor([[False, True, True], [True, True, True], [True, False, False]]))
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert row.position_ids.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert row.layout.tolist() == [[[[2, ALONE], [3, ALONE], [1, ALONE]]]]


@pytest.mark.parametrize(("rows", "tokens"), [(4, 40), (8, 80), (8, 81)])
def test_in_16_bits_tokens_of_no_row_keep_shapes_few(rows: int, tokens: int) -> None:
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    assert Packed.of(ids, ids.bool()).input_ids.shape == (1, rows * tokens)
    with torch.autocast("cpu", torch.bfloat16):
        row = Packed.of(ids, ids.bool())
    width = {160: 160, 640: 640, 648: 656}[rows * tokens]  # multiples of 4 from 128 on, and of 16 from 512 on
    assert row.input_ids.shape == row.position_ids.shape == (1, width)
    assert row.input_ids.sum() == rows * tokens
    more = width - rows * tokens
    assert row.layout[0, 0, :, 0].tolist() == [tokens] * rows + [more] * (more > 0)
    assert row.layout[0, 0, :, 1].eq(ALONE).all()


def test_log_probs_and_gradients_equal_those_with_padding(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(folder))
    assert can_pack(model, torch.device("cpu"))
    found = target_log_probs(model, BATCH)
    own = gradient(model, -found.sum())
    padded(monkeypatch)
    expected = target_log_probs(model, BATCH)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient(model, -expected.sum()))


def test_values_and_gradients_equal_those_with_padding(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_scalar_model(Backbone(folder))
    assert_values_as_padded(model, BATCH, monkeypatch)


def test_no_row_sees_another(folder: str) -> None:
    model = load_causal_lm(Backbone(folder))
    other = BATCH.input_ids.clone()
    other[0, :9] += 1
    changed = TokenBatch(other, BATCH.attention_mask, BATCH.loss_mask)
    before, after = target_log_probs(model, BATCH), target_log_probs(model, changed)
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_is_as_near_to_float32_as_with_padding(
    tiny_llama_dir: Path, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), gradient_checkpointing=checkpointing))
    exact = target_log_probs(model, BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        found = target_log_probs(model, BATCH)
        own = gradient(model, -found.sum())
        padded(monkeypatch)
        with_padding = target_log_probs(model, BATCH)
    assert_near = 2 * float((with_padding - exact).abs().max())
    assert 0 < float((found - exact).abs().max()) <= assert_near
    reference = gradient(model, -exact.sum())
    assert nn.functional.cosine_similarity(own, reference, dim=0) > 0.999


def test_rows_longer_than_plain_products_are_good_for(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    found = target_log_probs(model, BATCH)
    monkeypatch.setattr(segments, "PLAIN_SCORES", 16)
    torch.testing.assert_close(target_log_probs(model, BATCH), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("attention", "tokens"), [("sdpa", 2 + 7 + 3), ("eager", 3 * 7)])
def test_a_budget_counts_padding_where_it_is_kept(tiny_llama_dir: Path, attention: str, tokens: int) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), attn_implementation=attention))
    computed = computed_tokens([9, 2, 7, 3, 8], packed=can_pack(model, torch.device("cpu")))
    assert computed(1, 4) == tokens


@pytest.mark.parametrize("kind", ["eager attention", "no positions", "sliding window"])
def test_models_that_cannot_be_told_keep_their_padding(tmp_path: Path, kind: str) -> None:
    configs: dict[str, PretrainedConfig] = {
        "eager attention": CONFIGS["qwen3"],
        "no positions": CONFIGS["bloom"],
        "sliding window": MistralConfig(**GROUPED, sliding_window=4),
    }
    AutoModelForCausalLM.from_config(configs[kind]).save_pretrained(tmp_path)
    attention = "sdpa" if kind == "sliding window" else "eager"
    model = load_causal_lm(Backbone(str(tmp_path), attn_implementation=attention))
    assert not can_pack(model, torch.device("cpu"))
    alone = token_batch([("count to five: ", "1 2 3 4 5")])
    width = alone.input_ids.shape[1]
    found = target_log_probs(model, BATCH)[2:3, : width - 1]
    torch.testing.assert_close(found, target_log_probs(model, alone), rtol=1e-4, atol=1e-4)


def test_a_model_that_computes_with_its_mask_is_given_one() -> None:
    model = AutoModelForCausalLM.from_config(DogeConfig(**GROUPED), attn_implementation="sdpa")
    packed.prepare(model)
    assert not can_pack(model, torch.device("cpu"))


@pytest.mark.skipif(not hasattr(transformers, "DeepseekV32Config"), reason="this transformers lacks DeepSeek-V3.2")
def test_a_model_that_chooses_its_keys_sees_those_alone(tmp_path: Path) -> None:
    ranks: dict[str, Any] = {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    chosen: dict[str, Any] = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 3, "first_k_dense_replace": 2}
    config = transformers.DeepseekV32Config(**GROUPED | {"num_key_value_heads": 4}, **ranks, **chosen)
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in whole.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    whole.save_pretrained(tmp_path)
    ids = torch.arange(40, 60)[None]
    torch.testing.assert_close(load_causal_lm(Backbone(str(tmp_path)))(ids).logits, whole(ids).logits)


def test_a_saved_model_says_nothing_of_how_it_attended(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert SEGMENTS not in (tmp_path / "config.json").read_text()


def test_a_mask_of_four_dimensions_is_still_a_mask(tiny_llama_dir: Path) -> None:
    model: Any = load_causal_lm(Backbone(str(tiny_llama_dir)))
    ids = BATCH.input_ids[2:3]
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    positions = torch.arange(ids.shape[1])[None]
    by_layout = model(input_ids=ids, position_ids=positions, attention_mask=layout(
        torch.tensor([ids.shape[1]]), torch.tensor([ALONE]))).logits  # fmt: skip
    torch.testing.assert_close(
        model(input_ids=ids, position_ids=positions, attention_mask=causal).logits, by_layout, rtol=1e-5, atol=1e-5
    )


def test_rows_with_little_padding_keep_it(monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path) -> None:
    monkeypatch.setattr(packed, "WORTH_PACKING", 0.05)
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :5] = False
    assert not packed.pays(model, mask)
    mask[0, 5] = False
    assert packed.pays(model, mask)


def test_in_16_bits_rows_are_packed_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path
) -> None:
    monkeypatch.setattr(packed, "WORTH_PACKING", 0.05)
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    mask = torch.ones(2, 50, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed.pays(model, mask)
        with torch.no_grad():
            assert not packed.pays(model, mask)


def test_branches_with_little_in_common_keep_their_padding(tiny_llama_dir: Path) -> None:
    model: Any = load_causal_lm(Backbone(str(tiny_llama_dir)))
    worth = packed.SEGMENT_COST // model.config.hidden_size**2  # tokens of padding: a segment must save more than that
    mask = torch.ones(2, worth + 2, dtype=torch.bool)
    assert not packed.pays(model, mask, branches=2)
    mask[0, 1:] = mask[1, : worth - 1] = False  # 2 * worth tokens less
    assert not packed.pays(model, mask, branches=2)
    mask[1, : worth + 1] = False
    assert packed.pays(model, mask, branches=2)
