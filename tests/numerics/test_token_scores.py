"""Log-probs by pieces of the head against log-probs from whole logits: numbers, gradients, and what is never made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, MAX_POSITIONS, PAD_ID, VOCABULARY, make_char_tokenizer, save_tiny_model
from packed_helpers import assert_same_gradient, gradient, padded
from stage_helpers import (
    FixedBatches,
    comparison_batch,
    ppo_module,
    prompt_batch,
    reward_module,
    sft_module,
    text_batch,
    token_batch,
    trainer,
    weights,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, PreTrainedTokenizerFast, RwkvConfig, RwkvForCausalLM

from instructlit.losses import language_loss, target_loss
from instructlit.models import token_scores
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.models.blocks import computes_again
from instructlit.ops.log_probs import token_log_probs
from instructlit.ops.micro_batches import spans
from instructlit.rollout.forward import log_probs_and_entropy
from instructlit.types import Prompt, Responses, TokenBatch

BATCH = token_batch([("say red: ", "der"), ("no", "on"), ("count to five: ", "1 2 3 4 5")])


class Largest(TorchDispatchMode):
    """The most rows that any tensor with `columns` in its last dimension had; that of the weights is left out."""

    def __init__(self, columns: int, weights: tuple[int, int]):
        super().__init__()
        self.columns, self.weights, self.rows = columns, weights, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.dim() and x.shape[-1] == self.columns and x.shape != self.weights:
                self.rows = max(self.rows, x.numel() // self.columns)
        return out


@pytest.fixture
def tiny_gemma2_dir(tmp_path: Path) -> Path:
    """A model that bounds its logits after the head."""
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=MAX_POSITIONS, pad_token_id=PAD_ID,
        eos_token_id=EOS_ID, final_logit_softcapping=0.5,
    )  # fmt: skip
    return save_tiny_model(config, tmp_path / "gemma2", make_char_tokenizer())


def whole_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False).logits
    return language_loss(logits, batch.input_ids, batch.loss_mask).total


def piece_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    return target_loss(token_scores.target_log_probs(model, batch), batch.loss_mask[:, 1:]).total


def responses() -> Responses:
    prompts = prompt_batch(["ab?", "a longer prompt", "x"])
    ids = torch.tensor([[100, 101, EOS_ID, PAD_ID], [110, EOS_ID, PAD_ID, PAD_ID], [97, 98, 99, 100]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])
    return Responses(
        [Prompt("")] * 3, [""] * 3, prompts.input_ids, prompts.attention_mask, ids, mask, torch.ones(3).bool()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_loss_and_gradient_are_those_of_whole_logits(
    name: str, rows: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "HEAD_ELEMENTS", rows * VOCABULARY)
    model = load_causal_lm(Backbone(str(request.getfixturevalue(f"tiny_{name}_dir"))))
    whole = whole_loss(model, BATCH)
    for _ in range(2):  # what the first pass learns of a model holds for the second
        pieces = piece_loss(model, BATCH)
        torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(gradient(model, pieces), gradient(model, whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "lm_head"]])
def test_adapters_on_trunk_and_head_get_the_same_gradient(
    tiny_llama_dir: Path, target_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "HEAD_ELEMENTS", 3 * VOCABULARY)
    model = load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(rank=4, target_modules=target_modules))).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    found = gradient(model, piece_loss(model, BATCH))
    assert found.abs().max() > 0.01
    expected = gradient(model, whole_loss(model, BATCH))
    # Sums run in another order without padding: in float32 what that is worth depends on the processor.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)


@pytest.mark.parametrize("keep_padding", [False, True])
def test_responses_are_read_at_their_temperature(
    tiny_llama_dir: Path, keep_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keep_padding:
        padded(monkeypatch)
    monkeypatch.setattr(token_scores, "HEAD_ELEMENTS", 2 * VOCABULARY)
    model, texts = load_causal_lm(Backbone(str(tiny_llama_dir))), responses()
    mask = texts.attention_mask
    positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    logits = model(input_ids=texts.input_ids, attention_mask=mask.long(), position_ids=positions).logits
    logits = logits[:, texts.prompt_ids.shape[1] - 1 : -1]
    expected = token_log_probs(logits, texts.response_ids, 0.7) * texts.response_mask
    every = (logits / 0.7).log_softmax(dim=-1)
    log_probs, spread = log_probs_and_entropy(model, texts, 0.7)
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(spread, -(every.exp() * every).sum(dim=-1) * texts.response_mask)
    assert not spread.requires_grad
    weight = torch.arange(1.0, 13).view(3, 4)
    own = gradient(model, (log_probs * weight).sum())
    whole = gradient(model, (expected * weight).sum())
    if keep_padding:  # sums run in the same order
        torch.testing.assert_close(own, whole, rtol=1e-5, atol=1e-6)
    assert_same_gradient(own, whole)


def test_padding_before_a_response_enters_no_state() -> None:
    torch.manual_seed(0)
    model = RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2))
    texts = responses()
    found = log_probs_and_entropy(model, texts, 1.0)[0]
    for i, (ids, mask) in enumerate(zip(texts.input_ids, texts.attention_mask, strict=True)):
        row, length = ids[mask][None], int(texts.response_mask[i].sum())
        alone = token_log_probs(model(row).logits[:, :-1], row[:, 1:])[0, -length:]
        torch.testing.assert_close(found[i, :length], alone, rtol=1e-5, atol=1e-5)
        assert not found[i, length:].any()


def test_logits_of_a_batch_are_never_made(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    found, transposed = {}, (32, VOCABULARY)
    for rows in (2, 5):
        monkeypatch.setattr(token_scores, "HEAD_ELEMENTS", rows * VOCABULARY)
        with Largest(VOCABULARY, transposed) as seen:
            piece_loss(model, BATCH).backward()
        found[rows] = seen.rows
    assert found == {2: 2, 5: 5}
    with Largest(VOCABULARY, transposed) as seen:
        whole_loss(model, BATCH).backward()
    assert seen.rows == BATCH.input_ids.numel()


@pytest.mark.parametrize(
    ("count", "gpu", "again", "rows"),
    [
        (32_768, False, False, 523),  # 64 million logits
        (16_384, True, False, 16_384),  # 2.1 billion: kept
        (16_384, True, True, 4_096),  # half a billion, in whole tiles of a product
        (32_768, True, False, 4_096),  # too many to be kept
    ],
)
def test_what_the_head_computes_at_once(count: int, gpu: bool, again: bool, rows: int) -> None:
    assert token_scores.rows_at_once(count, 128_256, gpu=gpu, again=again) == rows


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_is_known_to_the_head(tiny_llama_dir: Path, checkpointing: bool) -> None:
    for lora in (None, Lora(rank=4)):
        model = load_causal_lm(Backbone(str(tiny_llama_dir), lora=lora, gradient_checkpointing=checkpointing))
        assert computes_again(model) == checkpointing


def test_a_batch_that_counts_nothing_has_a_gradient_of_zero(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    nothing = TokenBatch(BATCH.input_ids, BATCH.attention_mask, torch.zeros_like(BATCH.loss_mask))
    loss = piece_loss(model, nothing)
    assert loss == 0
    assert gradient(model, loss).abs().max() == 0


def test_the_head_is_itself_again_after_an_error(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))

    def fails(logits: Tensor, ids: Tensor) -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        token_scores.target_scores(model, BATCH, fails)
    assert model(input_ids=BATCH.input_ids).logits.shape == (*BATCH.input_ids.shape, VOCABULARY)


def test_activation_checkpointing_changes_no_gradient(tiny_llama_dir: Path) -> None:
    for lora in (None, Lora(rank=4)):
        torch.manual_seed(0)
        plain = load_causal_lm(Backbone(str(tiny_llama_dir), lora=lora))
        torch.manual_seed(0)
        again = load_causal_lm(Backbone(str(tiny_llama_dir), lora=lora, gradient_checkpointing=True))
        own = gradient(plain, piece_loss(plain, BATCH))
        assert own.abs().max() > 0
        torch.testing.assert_close(gradient(again, piece_loss(again, BATCH)), own)


# -- micro-batches by tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        (None, None, [(0, 5)]),
        (2, None, [(0, 2), (2, 4), (4, 5)]),
        (None, 8, [(0, 2), (2, 3), (3, 5)]),  # 2 x 4; 9 alone is over the budget; 2 x 3
        (1, 8, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (None, 1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
    ],
)
def test_spans_hold_padded_tokens_to_the_budget(rows: int | None, tokens: int | None, expected: list[Any]) -> None:
    lengths = [4, 2, 9, 3, 1]
    assert list(spans(5, rows, tokens, lambda a, b: (b - a) * max(lengths[a:b]))) == expected


STAGES: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "sft": (sft_module, lambda: BATCH),
    "reward": (
        reward_module,
        lambda: comparison_batch([
            ("count: ", ["1 2 3", "no", "1"], [1, 3, 2]),
            ("say: ", ["a rather long answer", "b"], [2, 1]),
            ("q", ["x", "y", "z"], [1, 1, 2]),
        ]),
    ),
    "ppo": (
        ppo_module,
        lambda: {
            "prompts": prompt_batch(["ab?", "a much longer prompt", "x", "say: ", "one", "two", "the third", "4"]),
            "pretraining": text_batch(["some text", "more", "and more of it", "end"]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_token_budget_changes_no_update(
    stage: str, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make, batch = STAGES[stage]
    found, forwards = [], []
    for tokens in (None, {"sft": 30, "reward": 130, "ppo": 60}[stage], 1):
        torch.manual_seed(0)
        module = make(tiny_llama_dir, micro_batch_tokens=tokens, **({"minibatch_size": 8} if stage == "ppo" else {}))
        calls = [0]
        backward = module._backward

        def counted(loss: Tensor, calls: list[int] = calls, backward: Any = backward) -> None:
            calls[0] += 1
            backward(loss)

        module._backward = counted
        trainer(tmp_path, max_steps=-1).fit(module, FixedBatches(char_tokenizer, [batch()]))
        found.append(weights(module.trained_model))
        forwards.append(calls[0])
    assert forwards[0] < forwards[1] < forwards[2]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-6)  # float32 rounding at weights of about 1
