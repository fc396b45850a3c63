"""The last block at the tokens that are read gives the numbers and gradients of the whole block."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_helpers import BATCH, assert_same_gradient, gradient, model_folder, padded
from torch import Tensor, nn

from instructlit.models import last_block
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.blocks import find_blocks
from instructlit.models.last_block import only_at
from instructlit.models.token_scores import target_log_probs
from instructlit.types import TokenBatch

COVERED = ["llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3"]
covered = pytest.fixture(model_folder, params=COVERED, name="covered")
other = pytest.fixture(model_folder, params=["bloom"], name="other")


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the last block computes every token."""
    monkeypatch.setattr(last_block, "WORTH_LEAVING", 2.0)


def mlp_rows(model: nn.Module, run: Callable[[], Any]) -> list[int]:
    """How many tokens the MLP of each block computes while `run` runs."""
    seen: list[int] = []

    def count(_module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0].shape[:-1].numel())

    # on a module inside the MLP, for hooks of the MLP itself see what it is handed before some of it are taken
    hooks = [next(b.get_submodule("mlp").children()).register_forward_pre_hook(count) for b in find_blocks(model)]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def log_probs_and_gradient(model: nn.Module, batch: TokenBatch = BATCH) -> tuple[Tensor, Tensor]:
    found = target_log_probs(model, batch)
    weight = torch.linspace(-1, 2, found.numel()).view(found.shape)
    return found.detach(), gradient(model, (found * weight).sum())


@pytest.mark.parametrize("padding", [False, True])
def test_log_probs_and_gradients_are_those_of_the_whole_block(
    covered: str, padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(Backbone(covered))
    if padding:
        padded(monkeypatch)
    found, own = log_probs_and_gradient(model)
    first, last = mlp_rows(model, lambda: target_log_probs(model, BATCH))
    assert first >= BATCH.attention_mask.sum()
    assert last == BATCH.loss_mask[:, 1:].sum()
    whole(monkeypatch)
    assert mlp_rows(model, lambda: target_log_probs(model, BATCH)) == [first, first]
    expected, gradient_of_whole = log_probs_and_gradient(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient_of_whole)


@pytest.mark.parametrize("padding", [False, True])
def test_values_and_gradients_are_those_of_the_whole_block(
    covered: str, padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_scalar_model(Backbone(covered))
    ids, mask, wanted = BATCH.input_ids.flip(1), BATCH.attention_mask.flip(1), BATCH.loss_mask.flip(1)
    if padding:
        padded(monkeypatch)
    found = model(ids, mask, wanted=wanted)
    assert found[~wanted].abs().max() == 0
    assert mlp_rows(model, lambda: model(ids, mask, wanted=wanted))[-1] == wanted.sum()
    weight = torch.linspace(-1, 2, ids.numel()).view(ids.shape)
    own = gradient(model, (found * weight).sum())
    whole(monkeypatch)
    expected = model(ids, mask) * wanted
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient(model, (expected * weight).sum()))


@pytest.mark.parametrize("padding", [False, True])
def test_scores_and_their_gradients_are_those_of_the_whole_block(
    covered: str, padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_scalar_model(Backbone(covered))
    ids, mask = BATCH.input_ids, BATCH.attention_mask
    group = torch.tensor([0, 1, 1, 2])
    if padding:
        padded(monkeypatch)

    def scores_and_gradient() -> tuple[Tensor, Tensor]:
        scores = torch.cat([model.score(ids, mask), model.score_branches(ids, mask, group)])
        return scores.detach(), gradient(model, (scores * torch.linspace(-1, 2, 8)).sum())

    found, own = scores_and_gradient()
    assert mlp_rows(model, lambda: model.score(ids, mask))[-1] == len(ids)
    assert mlp_rows(model, lambda: model.score_branches(ids, mask, group))[-1] == len(ids)
    whole(monkeypatch)
    expected, gradient_of_whole = scores_and_gradient()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient_of_whole)


def test_under_adapters_too(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(rank=4)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    found, own = log_probs_and_gradient(model)
    assert mlp_rows(model, lambda: target_log_probs(model, BATCH))[-1] == BATCH.loss_mask[:, 1:].sum()
    whole(monkeypatch)
    expected, gradient_of_whole = log_probs_and_gradient(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient_of_whole)


def test_in_16_bits_others_are_computed_besides_so_that_shapes_come_again(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    ids = torch.randint(5, 100, (2, 300), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    targets = mask.clone()
    targets[:, :150] = False
    targets[0, 150] = False
    batch = TokenBatch(ids, mask, targets)
    exact, exact_gradient = log_probs_and_gradient(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rows = mlp_rows(model, lambda: target_log_probs(model, batch))
        found, own = log_probs_and_gradient(model, batch)
    assert rows == [608, 304]  # of 600 and 299: in steps of 16 and of 8
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.1)
    assert nn.functional.cosine_similarity(own, exact_gradient, dim=0) > 0.999


def test_others_computed_besides_have_no_part_in_the_gradient(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    targets = BATCH.loss_mask.clone()
    targets[0, 1] = True  # the first place is read, which would be what fills a list of places up
    batch = TokenBatch(BATCH.input_ids, BATCH.attention_mask, targets)
    monkeypatch.setattr(last_block, "lacking", lambda *_: 5)
    assert mlp_rows(model, lambda: target_log_probs(model, batch))[-1] == targets[:, 1:].sum() + 5
    found, own = log_probs_and_gradient(model, batch)
    whole(monkeypatch)
    expected, gradient_of_whole = log_probs_and_gradient(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient_of_whole)


def test_few_tokens_left_out_are_not_worth_it(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    batch = TokenBatch(BATCH.input_ids, BATCH.attention_mask, BATCH.attention_mask)
    first, last = mlp_rows(model, lambda: target_log_probs(model, batch))
    assert first == last


def test_nothing_is_left_of_it_afterwards(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    inputs = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.attention_mask.long()}
    before = model(**inputs).logits
    with only_at(model, torch.tensor([3]), BATCH.input_ids.numel()):
        assert not torch.equal(model(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, before)


def test_activations_that_are_computed_again_are_those_of_all_tokens(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), gradient_checkpointing=True))
    plain = load_causal_lm(Backbone(str(tiny_llama_dir)))
    first, last = mlp_rows(model, lambda: target_log_probs(model, BATCH))
    assert first == last
    found, own = log_probs_and_gradient(model)
    expected, gradient_of_plain = log_probs_and_gradient(plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(own, gradient_of_plain)


def test_a_block_of_another_class_computes_all_tokens(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(other, attn_implementation="eager"))
    found, own = log_probs_and_gradient(model)
    first, last = mlp_rows(model, lambda: target_log_probs(model, BATCH))
    assert first == last
    whole(monkeypatch)
    expected, gradient_of_whole = log_probs_and_gradient(model)
    assert torch.equal(found, expected)
    assert torch.equal(own, gradient_of_whole)
