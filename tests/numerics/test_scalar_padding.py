"""Scores do not depend on padding, precision of the trunk or the batch, and are those of plain transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MistralConfig, PretrainedConfig, Qwen2Config

from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.scalar import ScalarHead, ScalarModel
from instructlit.ops.masking import position_ids

PAD_ID, EOS_ID = 0, 2
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}
TEXT = "count to three: one two"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox", "qwen2", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    if name in ("llama", "gpt2"):
        return request.getfixturevalue(f"tiny_{name}_dir")
    configs: dict[str, PretrainedConfig] = {
        "gpt_neox": GPTNeoXConfig(**SHAPE),
        "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
        "mistral": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None),
    }
    path = tmp_path_factory.mktemp("models") / name
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configs[name]).save_pretrained(path)
    return path


def scalar(folder: Path, **options: str) -> ScalarModel:
    torch.manual_seed(0)
    return load_scalar_model(Backbone(str(folder), **options)).eval()  # type: ignore[arg-type]


def padded(text: str, left: int, right: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[PAD_ID] * left + [ord(c) for c in text] + [EOS_ID] + [PAD_ID] * right])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, left : ids.shape[1] - right] = True
    return ids, mask


@pytest.mark.parametrize(("left", "right"), [(0, 7), (0, 50), (7, 0), (50, 0), (13, 11)])
def test_padding_on_either_side_changes_no_score(folder: Path, left: int, right: int) -> None:
    model = scalar(folder)
    plain = model.score(*padded(TEXT, 0, 0))
    assert plain.abs() > 1e-3  # a head of zeros would pass
    torch.testing.assert_close(model.score(*padded(TEXT, left, right)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("left", "right"), [(7, 0), (13, 11)])
def test_padding_that_is_kept_changes_no_score(tiny_gpt2_dir: Path, left: int, right: int) -> None:
    """Where rows are not packed, as in float32 on a GPU; GPT-2 has an embedding of every position."""
    model = scalar(tiny_gpt2_dir, attn_implementation="eager")
    torch.testing.assert_close(
        model.score(*padded(TEXT, left, right)), model.score(*padded(TEXT, 0, 0)), atol=1e-5, rtol=0
    )


def test_a_batch_of_eight_scores_as_eight_batches_of_one(folder: Path) -> None:
    model = scalar(folder)
    texts = [TEXT[: 2 + 2 * i] for i in range(8)]
    width = len(TEXT) + 5
    rows = [padded(t, 3 * (i % 2), width - len(t) - 3 * (i % 2)) for i, t in enumerate(texts)]
    together = model.score(torch.cat([ids for ids, _ in rows]), torch.cat([mask for _, mask in rows]))
    alone = torch.cat([model.score(*padded(t, 0, 0)) for t in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_values_are_per_token_causal_and_zero_on_padding(folder: Path) -> None:
    model = scalar(folder)
    ids, mask = padded(TEXT, 4, 6)
    values = model(ids, mask)
    assert values.shape == ids.shape
    assert values.dtype == torch.float32
    assert values[~mask].eq(0).all()
    for length in (1, 5, len(TEXT)):
        prefix = torch.tensor([[ord(c) for c in TEXT[:length]]])
        alone = model.score(prefix, torch.ones_like(prefix, dtype=torch.bool))
        torch.testing.assert_close(values[:, 4 + length - 1], alone, atol=1e-5, rtol=0)


def test_gradients_through_padded_rows_are_finite(folder: Path) -> None:
    model = scalar(folder).train()
    model.score(*padded(TEXT, 9, 9)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_shift_moves_real_positions_only(folder: Path) -> None:
    model = scalar(folder)
    ids, mask = padded(TEXT, 2, 3)
    before = model(ids, mask)
    model.set_shift(-2.5)
    after = model(ids, mask)
    torch.testing.assert_close(after[mask], before[mask] - 2.5)
    assert after[~mask].eq(0).all()


def test_left_padded_logits_of_a_policy_are_those_without_padding(folder: Path) -> None:
    model = load_causal_lm(Backbone(str(folder))).eval()
    ids, mask = padded(TEXT, 11, 0)
    out = model(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False)
    plain = model(input_ids=ids[:, 11:], use_cache=False).logits
    torch.testing.assert_close(out.logits[:, 11:], plain, atol=1e-4, rtol=0)


def test_the_head_computes_in_float32_whatever_the_trunk(tiny_llama_dir: Path) -> None:
    model = scalar(tiny_llama_dir, dtype="bfloat16")
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids, mask = padded(TEXT, 0, 0)
        values = model(ids, mask)
    hidden = seen[0]
    assert hidden.dtype == torch.bfloat16
    weight: Tensor = model.head.weight  # type: ignore[assignment]
    exact = (hidden.double() @ weight.detach().double().T)[..., 0]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[mask].double(), exact, atol=1e-6, rtol=1e-6)
    in_16_bits = nn.functional.linear(hidden, weight.detach())[..., 0].double()
    assert (in_16_bits - exact).abs().max() > 1e-4  # what the line above would miss otherwise


def test_no_cache_and_no_layers_hidden_states_are_kept(tiny_llama_dir: Path) -> None:
    model = scalar(tiny_llama_dir)
    outputs: list[dict[str, object]] = []
    model.hf.base_model.register_forward_hook(lambda _, __, output: outputs.append(dict(output)))
    model.score(*padded(TEXT, 0, 0))
    assert not {"past_key_values", "cache"} & outputs[0].keys()
    assert outputs[0].get("hidden_states") is None


def test_a_new_head_has_stiennons_variance() -> None:
    head = ScalarHead(4095, 64, bias=False)
    head.initialise()
    weight = head.weight.detach()
    assert weight.mean().abs() < 1e-4
    assert weight.var() * 4096 == pytest.approx(1.0, rel=0.02)  # 262,080 draws: 0.3 % standard error


def test_the_shift_stays_in_float32_when_the_model_goes_to_16_bits(tiny_llama_dir: Path) -> None:
    model = scalar(tiny_llama_dir)
    model.set_shift(1.0009765625 + 2**-20)
    model.to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model.shift.dtype == torch.float32
    assert float(model.shift) == 1.0009765625 + 2**-20


@torch.no_grad()
def test_values_are_shifted_in_training_too_and_0_at_padding_that_is_asked_for(tiny_llama_dir: Path) -> None:
    model, (ids, mask) = scalar(tiny_llama_dir).train(), padded(TEXT, 2, 3)
    plain = model(ids, mask, wanted=torch.ones_like(mask))
    assert not plain[~mask.bool()].any()
    model.set_shift(0.7)
    torch.testing.assert_close(model(ids, mask), plain + 0.7 * mask)
