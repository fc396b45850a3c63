"""A reward model's shift makes the mean score of the demonstrations 0, and changes no difference between scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import FixedBatches, comparison_batch, reward_module, token_batch, trainer

from instructlit.errors import UserError
from instructlit.losses import ranking_loss
from instructlit.models.backbone import Backbone
from instructlit.modules import RewardModule

RANKED = [comparison_batch([("count ", ["1 2 3", "no", "1"], [1, 3, 2]), ("a", ["b", "ccc"], [2, 1])])]
DEMONSTRATIONS = [
    token_batch([("ab", "c"), ("say hello ", "hello you"), ("x", "yy")]),
    token_batch([("abc", "d"), ("1", "23"), ("q", ""), ("m", "nop")]),
]


def fit(root: Path, module: RewardModule, tokenizer: Any, validation: Any = None, **options: Any) -> RewardModule:
    trainer(root, **options).fit(module, FixedBatches(tokenizer, RANKED, validation, DEMONSTRATIONS))
    return module


@torch.no_grad()
def scores(module: RewardModule) -> torch.Tensor:
    """Of the demonstrations, (7,)."""
    model = module.trained_model.eval()
    return torch.cat([model.score(batch.input_ids, batch.attention_mask) for batch in DEMONSTRATIONS])


def test_the_demonstrations_average_zero(tmp_path, tiny_gpt2_dir, char_tokenizer):
    """Read without dropout, which is on again afterwards."""
    module = reward_module(tiny_gpt2_dir, model=Backbone(str(tiny_gpt2_dir), dropout=0.2))
    fit(tmp_path, module, char_tokenizer)
    assert module.trained_model.training
    assert abs(float(module.trained_model.shift)) > 1e-3
    found = scores(module)
    assert found.mean().item() == pytest.approx(0, abs=1e-5)
    module.trained_model.set_shift(100.0)
    loss, moved = (ranking_loss(x[:2], torch.tensor([0, 0]), torch.tensor([1, 2])) for x in (found, scores(module)))
    assert moved.total.item() == pytest.approx(loss.total.item(), abs=1e-4)


def test_it_is_found_anew_over_the_one_that_is_there_and_the_demonstrations_of_all_ranks(
    tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch
):
    """A validation has set one before the end of training does."""
    module = fit(tmp_path, reward_module(tiny_llama_dir), char_tokenizer, RANKED)
    assert abs(float(module.trained_model.shift)) > 1e-3
    assert scores(module).mean().item() == pytest.approx(0, abs=1e-5)
    other = torch.tensor([8.0, 1.0])  # of another rank: one demonstration, scored 8
    monkeypatch.setattr(module, "sum_over_ranks", lambda total: total + other)
    module.centre_on_demonstrations()
    assert scores(module).mean().item() == pytest.approx(-8 / 8, abs=1e-5)


def test_it_is_that_of_the_batches_asked_for(tmp_path, tiny_llama_dir, char_tokenizer):
    found = scores(fit(tmp_path, reward_module(tiny_llama_dir, shift_batches=1), char_tokenizer))
    assert found[:3].mean().item() == pytest.approx(0, abs=1e-5)
    assert abs(found.mean().item()) > 1e-3


def test_a_checkpoint_of_a_validation_holds_it(tmp_path, tiny_llama_dir, char_tokenizer):
    kept = ModelCheckpoint(tmp_path, "best", monitor="reward/val/loss", save_on_train_epoch_end=False)
    fit(tmp_path, reward_module(tiny_llama_dir), char_tokenizer, RANKED, callbacks=[kept], enable_checkpointing=True)
    again = reward_module(tiny_llama_dir)
    again.configure_model()
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert abs(float(state["model.shift"])) > 1e-3
    again.load_state_dict(state)
    assert scores(again).mean().item() == pytest.approx(0, abs=1e-5)


def test_demonstrations_are_read_in_the_precision_of_the_run(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch):
    module = reward_module(tiny_llama_dir)
    module.configure_model()
    score, found = module.trained_model.score, []

    def looking(*args):
        found.append(torch.is_autocast_enabled("cpu"))
        return score(*args)

    monkeypatch.setattr(module.trained_model, "score", looking)
    fit(tmp_path, module, char_tokenizer, precision="bf16-mixed")
    assert found == [True] * len(DEMONSTRATIONS)


def test_one_that_is_not_finite_is_refused(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch):
    module = fit(tmp_path, reward_module(tiny_llama_dir), char_tokenizer)
    shift = float(module.trained_model.shift)
    monkeypatch.setattr(module.trained_model, "score", lambda ids, mask: torch.full((len(ids),), torch.nan))
    with pytest.raises(UserError, match="the mean score of the demonstrations is nan"):
        module.centre_on_demonstrations()
    assert float(module.trained_model.shift) == shift
