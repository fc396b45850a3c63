"""Rows that one operator attends to, as on a GPU: the numbers and gradients of rows with padding. A CPU has no kernel
for it; `varlen_on_cpu` gives it plain ones, and everything around them is what a GPU runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import varlen_on_cpu  # noqa: F401 - gives the operator its kernels
from packed_helpers import GROUPED, SHAPE, assert_same_gradient, assert_values_as_padded, gradient, padded
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from instructlit.models import packed
from instructlit.models.backbone import _checkpoint_activations
from instructlit.models.packed import Packed, bounds, can_pack, pays
from instructlit.models.scalar import ScalarModel
from instructlit.models.token_scores import target_log_probs
from instructlit.ops.log_probs import next_token_log_probs
from instructlit.types import TokenBatch

LENGTHS = torch.tensor([13, 5, 25, 3])
MASK = torch.arange(25) < LENGTHS[:, None]
IDS = torch.randint(3, 128, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
BATCH = TokenBatch(IDS, MASK, MASK & (torch.arange(25) > 1))
NO_DROPOUT: dict[str, Any] = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=16),
    "gpt2": lambda: GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=256, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SHAPE, **NO_DROPOUT),
    "phi": lambda: PhiConfig(**SHAPE, attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "opt": lambda: OPTConfig(
        vocab_size=128, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.0,
        attention_dropout=0.0, word_embed_proj_dim=32, max_position_embeddings=256,
    ),
}  # fmt: skip
CPU = torch.device("cpu")


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of every call of the operator from here on."""
    calls: list[Any] = []
    operator = packed._varlen
    monkeypatch.setattr(packed, "_varlen", lambda *args: calls.append(args) or operator(*args))
    return calls


def made(name: str, auto: Any = AutoModelForCausalLM) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.num_labels = 1
    hf = auto.from_config(config, attn_implementation="sdpa")
    packed.prepare(hf)
    return hf.train()


def test_bounds_carry_the_longest_length_in_their_shape() -> None:
    found = bounds(torch.tensor([2, 0, 3]), 4)
    assert found.shape == (1, 4, 1, 4)
    assert found[0, 0, 0].tolist() == [0, 2, 2, 5]
    assert found.dtype == torch.int32
    assert found.stride(1) == 0  # no memory for a number that is known


@pytest.mark.usefixtures("as_on_a_gpu")
def test_rows_follow_one_another_between_bounds() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9], [4, 0, 0]])
    row = Packed.of(ids, torch.tensor([[False, True, True], [True, True, True], [True, False, False]]))
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert row.position_ids.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert row.layout[0, 2, 0].tolist() == [0, 2, 5, 6]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_tokens_of_no_row_let_shapes_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    short = torch.full((201, 1), 5)
    row = Packed.of(short, short > 0)
    assert row.input_ids.shape == (1, 204)
    assert row.layout.shape[1] == 3  # the longest segment, which is that of no row
    assert row.layout[0, 0, 0, -3:].tolist() == [200, 201, 204]
    lengths = torch.tensor([37, 53, 1])
    mask = torch.arange(53) < lengths[:, None]
    targets = mask.clone()
    targets[0, 1] = False  # 35, 52 and none
    batch = TokenBatch(torch.randint(3, 60, mask.shape, generator=torch.Generator().manual_seed(1)), mask, targets)
    calls, heads, model = spied(monkeypatch), [], made("llama")
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda states: heads.append(len(states)) or head(states))
    found = target_log_probs(model, batch)
    own = gradient(model, -found.sum())
    assert {len(query) for query, *_ in calls} == {92}
    assert heads == [88]
    whole = model(input_ids=batch.input_ids, attention_mask=mask.long()).logits
    expected = next_token_log_probs(whole, batch.input_ids).masked_fill(~targets[:, 1:], 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient(model, -expected.sum()))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_equal_those_with_padding(
    name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(name)
    if checkpointing:
        _checkpoint_activations(model)
    calls = spied(monkeypatch)
    found = target_log_probs(model, BATCH)
    own = gradient(model, -found.sum())
    layers, heads = model.config.num_hidden_layers, getattr(model.config, "num_key_value_heads", 4)
    assert len(calls) == layers * (2 if checkpointing else 1)
    assert {key.shape[:2] for _, key, *_ in calls} == {(int(BATCH.attention_mask.sum()), heads)}
    padded(monkeypatch)
    expected = target_log_probs(model, BATCH)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient(model, -expected.sum()))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_values_and_gradients_equal_those_with_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScalarModel(made(name, AutoModelForSequenceClassification))
    assert_values_as_padded(model, BATCH, monkeypatch)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_branches_keep_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScalarModel(made("llama", AutoModelForSequenceClassification))
    group = torch.tensor([0, 0, 1, 1])
    ids = BATCH.input_ids.clone()
    ids[1], ids[3] = ids[0], ids[2]
    mask = BATCH.attention_mask[[0, 0, 2, 2]]
    assert pays(model.backbone, mask)
    assert not pays(model.backbone, mask, branches=4)
    found = model(ids, mask, group=group)
    padded(monkeypatch)
    torch.testing.assert_close(found, model.score(ids, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_any_padding_pays_and_none_does_not() -> None:
    model = made("llama")
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert not pays(model, mask)
    mask[0, 4] = False
    assert pays(model, mask)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_under_autocast_the_kernel_gets_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_HALVES", (torch.bfloat16, torch.float16))
    model = made("qwen3")  # whose norms leave queries and keys in float32
    exact = target_log_probs(model, BATCH)
    calls = spied(monkeypatch)
    assert not can_pack(model, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_pack(model, CPU)
        found = target_log_probs(model, BATCH)
        own = gradient(model, -found.sum())
    assert {x.dtype for call in calls for x in call[:3]} == {torch.bfloat16}
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    assert F.cosine_similarity(own, gradient(model, -target_log_probs(model, BATCH).sum()), dim=0) > 0.999


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("lacks", ["precision", "size of heads", "large heads", "two sizes", "dropout"])
def test_what_the_kernel_does_not_take_keeps_its_padding(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_HALVES", (torch.bfloat16, torch.float16))
    model = made("qwen3").bfloat16()
    assert can_pack(model, CPU)
    if lacks == "precision":
        model.float()
    elif lacks == "dropout":
        model.config.attention_dropout = 0.1
        assert can_pack(model.eval(), CPU)
        model.train()
    elif lacks == "two sizes":
        model.config.v_head_dim = 8
    else:
        model.config.head_dim = 20 if lacks == "size of heads" else 264
    assert not can_pack(model, CPU)


# -- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_kernel_is_as_near_to_float32_as_padded_rows(
    name: str, mixed: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    batch, exactly, model = BATCH.to(device), made(name).to(device), made(name).to(device)
    exact = target_log_probs(exactly, batch)
    reference = gradient(exactly, -exact.sum())
    if checkpointing:
        _checkpoint_activations(model)
    if not mixed:
        model.bfloat16()
    calls = spied(monkeypatch)

    def computed() -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            found = target_log_probs(model, batch)
        return found.detach(), gradient(model, -found.sum())

    found, own = computed()
    assert calls
    padded(monkeypatch)
    with_padding, other = computed()
    assert float((found - exact).abs().max()) <= 2 * float((with_padding - exact).abs().max()) + 1e-3
    assert F.cosine_similarity(own, reference, dim=0) > min(
        0.999, float(F.cosine_similarity(other, reference, dim=0)) - 1e-3
    )


@pytest.mark.gpu
def test_no_layer_waits_for_the_device() -> None:
    device = torch.device("cuda")
    model, batch = made("llama").to(device).bfloat16(), BATCH.to(device)
    row = Packed.of(batch.input_ids, batch.attention_mask)
    trunk = model.base_model
    trunk(**row.inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trunk(**row.inputs).last_hidden_state.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
