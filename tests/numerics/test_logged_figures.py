"""The figures that the stages log, each worked out by hand from what it is a figure of."""

import csv
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from stage_helpers import (
    EOS,
    FixedBatches,
    Recorder,
    padded,
    ppo_module,
    prompt_batch,
    sft_module,
    sgd,
    text_batch,
    token_batch,
    trainer,
    weights,
)
from torch import Tensor, tensor

from instructlit.callbacks import CSVLogger
from instructlit.losses import language_loss
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.modules.mean import Mean
from instructlit.modules.ppo_metrics import UpdateMetrics, rollout_metrics
from instructlit.modules.reward_metrics import PairMetrics
from instructlit.ops import FixedKL
from instructlit.rollout import CachedEngine, Sampling
from instructlit.types import ComparisonBatch, Rollout, TokenBatch


def columns_up_to(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < tensor(lengths)[:, None]


def test_pairs_by_hand() -> None:
    """Ann ranks three completions, Bob two, and nobody known two: five pairs, in the order of `comparison_pairs`."""
    scores = tensor([2.0, 1.0, 1.0, 3.0, 0.0, 1.0, 5.0])
    lengths = [2, 1, 1, 1, 4, 1, 2]
    batch = ComparisonBatch(
        input_ids=torch.zeros(7, 5, dtype=torch.int64),
        attention_mask=torch.ones(7, 5, dtype=torch.bool),  # a token over the border makes a prompt one shorter
        response_mask=columns_up_to(lengths, 5),
        prompt_index=tensor([0, 0, 0, 1, 1, 2, 2]),
        ranks=tensor([1, 2, 4, 2, 1, 1, 2]),
        labelers=["ann", "bob", None],
    )
    metrics = PairMetrics()
    metrics.update(scores, batch)
    # winner less loser: scores 1, 1, 0, -3, -4; lengths 1, 1, 0, 3, -1; ranks 1, 3, 2, 1, 1 apart
    favourite = {d: 1 / (1 + math.exp(-d)) for d in (1, 3, 4)}
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(
        {
            "pairs": 5,
            "accuracy": (1 + 1 + 0.5 + 0 + 0) / 5,
            "loss": sum(math.log(1 + math.exp(-d)) for d in (1, 1, 0, -3, -4)) / 5,
            # of ten bins the first has the tie, sure of a half and half right, the fifth two pairs, the last two
            "calibration_error": (2 * (1 - favourite[1]) + favourite[3] + favourite[4]) / 5,
            "length_accuracy": (1 + 1 + 0.5 + 1 + 0) / 5,
            "accuracy_winner_longer": (1 + 1 + 0) / 3,
            "accuracy_winner_shorter": 0,
            "accuracy_margin_1": (1 + 0 + 0) / 3,
            "accuracy_margin_2_up": (1 + 0.5) / 2,
            "accuracy_labeler_ann": (1 + 1 + 0.5) / 3,
            "accuracy_labeler_bob": 0,
        }
    )


def test_the_loss_of_scores_far_apart_is_finite() -> None:
    """Checklist 9: the log of the sigmoid of -200 would be minus infinity. A group without a pair has no figure."""
    mask, order = torch.ones(2, 3, dtype=torch.bool), tensor([0, 0])
    batch = ComparisonBatch(torch.zeros(2, 3, dtype=torch.int64), mask, mask, order, tensor([1, 2]), [None])
    metrics = PairMetrics()
    metrics.update(tensor([-100.0, 100.0]), batch)
    figures = metrics.compute()
    assert figures["loss"].item() == pytest.approx(200)
    assert {name for name in figures if "accuracy" in name} == {"accuracy", "length_accuracy", "accuracy_margin_1"}


def test_validation_is_over_tokens_and_a_prediction_over_those_of_its_row(tmp_path, tiny_llama_dir, char_tokenizer):
    """Completions of 1 and 9 tokens in a micro-batch each: EOS alone, and what the model holds likeliest."""
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    likeliest = CachedEngine().generate(model, prompt_batch(["count "]), Sampling(9, greedy=True), char_tokenizer)
    ids, mask = padded([[*map(ord, "say nothing"), EOS], likeliest.input_ids[0].tolist()])
    batch = TokenBatch(ids, mask, mask & ~columns_up_to([11, 6], ids.shape[1]))
    with torch.no_grad():
        log_probs = model(ids, mask.long()).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    first, second = log_probs[0, 10], log_probs[1, 5:14].sum()
    module = sft_module(tiny_llama_dir, micro_batch_size=1)
    data = FixedBatches(char_tokenizer, [batch], [batch])
    (figures,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert figures["sft/val/loss"] == pytest.approx(-(first + second).item() / 10, rel=1e-5)
    assert figures["sft/val/token_accuracy"] == pytest.approx((0 + 9) / 10)
    torch.testing.assert_close(module.predict_step(batch, 0), torch.stack([first, second / 9]))


def test_weights_in_16_bits_leave_the_figures_of_sft_their_digits(tmp_path, tiny_llama_dir, char_tokenizer):
    """In bf16 the sums of losses and tokens stand still after some of these micro-batches and batches."""
    rows = [("ab", "c" * (20 + n % 9)) for n in range(40)]
    recorder, module = Recorder(), sft_module(tiny_llama_dir, micro_batch_size=1, optimizer=sgd(0.0))
    data = FixedBatches(char_tokenizer, [token_batch(rows)], [token_batch([row]) for row in rows])
    fit = trainer(tmp_path, precision="bf16-true", callbacks=[recorder])
    fit.fit(module, datamodule=data)
    with torch.no_grad():
        losses = [-module.predict_step(token_batch([row]), 0).item() * (len(row[1]) + 1) for row in rows]
    expected = sum(losses) / sum(len(completion) + 1 for _, completion in rows)
    assert recorder.rows[0]["sft/train/loss"] == pytest.approx(expected, rel=1e-4)
    assert float(fit.callback_metrics["sft/val/loss"]) == pytest.approx(expected, rel=1e-4)


def test_a_validation_of_ppo_stands_at_its_own_episodes(tmp_path, tiny_llama_dir, char_tokenizer):
    """Of the rollouts every third and the last are logged; the first validation comes before any of them."""
    prompts = prompt_batch(["ab"] * 8)
    module = ppo_module(tiny_llama_dir, episodes=40)
    data = FixedBatches(char_tokenizer, [{"prompts": prompts}] * 5, [prompts])
    logger = CSVLogger(str(tmp_path), name="", version="")
    trainer(tmp_path, logger=logger, log_every_n_steps=3, val_check_interval=1).fit(module, datamodule=data)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    seen = [float(row["ppo/episodes"]) for row in rows if row["ppo/val/score"]]
    assert seen == [8, 16, 24, 32, 40]
    assert [float(row["ppo/episodes"]) for row in rows if row["ppo/objective/score"]] == [24, 40]


def test_weights_in_16_bits_leave_the_figures_of_ppo_their_digits(tmp_path, tiny_llama_dir, char_tokenizer):
    """257 episodes would be 256 in bf16, a rate of 0.00123 and a coefficient of 0.021 others, and a count of tokens."""
    recorder, prompts = Recorder(), prompt_batch(["ab"] * 257)
    rate, kl = sgd(0.00123), FixedKL(0.021)
    module = ppo_module(
        tiny_llama_dir, episodes=257, minibatch_size=257, micro_batch_size=20, kl=kl, optimizer=rate, self_check=False
    )
    data = FixedBatches(char_tokenizer, [{"prompts": prompts}], [prompts] * 2)
    fit = trainer(tmp_path, precision="bf16-true", callbacks=[recorder])
    fit.fit(module, datamodule=data)
    (row,) = recorder.rows
    assert row["ppo/episodes"] == 257
    assert row["ppo/lr"] == pytest.approx(0.00123)
    assert row["ppo/objective/kl_coefficient"] == pytest.approx(0.021)
    assert row["ppo/policy/ratio_mean"] == pytest.approx(1, abs=1e-4)
    lengths = [sample["length"] for sample in module.validation_rows]
    assert float(fit.callback_metrics["ppo/val/length"]) == pytest.approx(sum(lengths) / len(lengths))


def test_a_validation_keeps_its_nan() -> None:
    mean = Mean()
    mean.update(tensor(math.nan), 2)
    mean.update(tensor(6.0), 3)
    assert mean.compute().isnan()


def rollout(**given: Any) -> Rollout:
    """Of what is given; nothing else is read."""
    blank: dict[str, Any] = dict.fromkeys(field.name for field in fields(Rollout))
    return Rollout(**(blank | given))


def test_a_rollout_by_hand() -> None:
    """Three responses of 3, 2 and 3 tokens; the last was cut, the first ends with its third; padding holds junk."""
    figures = rollout_metrics(
        rollout(
            response_mask=columns_up_to([3, 2, 3], 3),
            ended=tensor([True, True, False]),
            old_log_probs=tensor([[-1.0, -2, -1], [-1, -1, -9], [-2, -1, -1]]),
            ref_log_probs=tensor([[-2.0, -2, -2], [-1, -2, 0], [-2, -1, -1]]),
            scores=tensor([1.0, 2.0, 6.0]),
            rewards=tensor([[-0.1, 0.0, 0.9], [0.0, 1.9, 70.0], [0.0, 0.0, 6.0]]),
            values=tensor([[1.0, 1, 1], [1, 3, 50], [3, 3, 3]]),
            returns=tensor([[3.0, 1, 3], [1, 5, 80], [3, 5, 3]]),
        ),
        beta=0.1,
        reduce=lambda sums: sums,
    )
    assert {name: value.item() for name, value in figures.items()} == pytest.approx(
        {
            "objective/score": 3,
            "objective/score_std": math.sqrt((4 + 1 + 9) / 3),
            "objective/kl": (2 + 1 + 0) / 3,
            "objective/reward": (0.8 + 1.9 + 6) / 3,
            "objective/kl_coefficient": 0.1,
            "response/length": 8 / 3,
            "response/eos_fraction": 2 / 3,
            "value/mean": (3 + 4 + 9) / 8,
            "value/return_mean": (7 + 6 + 11) / 8,
            "value/explained_variance": 1 - 1 / 2,  # what is left is 2, 0, 2, 0, 2, 0, 2, 0; the returns' is 16 / 8
        }
    )


def test_updates_by_hand() -> None:
    """Means over the tokens of each part in two updates."""
    metrics, mask = UpdateMetrics(torch.device("cpu")), tensor([[True, True, False]])
    metrics.add("engine", {"gap": tensor(0.5)}, mask)
    metrics.add("policy", {"ratio_mean": tensor(2.5), "entropy": tensor(3.0)}, mask)
    metrics.add("policy", {"ratio_mean": tensor(0.5), "entropy": tensor(3.0)}, tensor([[True, False, False]]))
    metrics.add("value", {"clip_fraction": tensor(1.0)}, mask)
    metrics.add("sampler", {"weight_mean": tensor(1.5)}, mask)
    for loss in (1.0, 4.0):
        metrics.add_update({"policy/loss": tensor(loss)})
    assert {name: value.item() for name, value in metrics.compute(lambda sums: sums).items()} == {
        "engine/gap": 0.25,
        "policy/ratio_mean": 1,
        "policy/entropy": 2,
        "value/clip_fraction": 0.5,
        "sampler/weight_mean": 0.75,
        "policy/loss": 2.5,
    }


def test_an_update_logs_each_models_gradient_and_the_plain_loss_of_the_text(tmp_path, tiny_llama_dir, char_tokenizer):
    """One step of gradient descent at a rate of 0.1: a gradient is ten times the way that its model went."""
    recorder, text = Recorder(), text_batch(["some text of the mix", "and some more", "that is mixed in", "27.8 times"])
    module = ppo_module(tiny_llama_dir, episodes=4, pretraining_coefficient=27.8)
    module.configure_model()
    before = [weights(model) for model in (module.trained_model, module.value_model)]
    with torch.no_grad():
        logits = module.trained_model(text.input_ids, text.attention_mask.long()).logits
        loss = language_loss(logits, text.input_ids, text.loss_mask).mean()
    data = FixedBatches(char_tokenizer, [{"prompts": prompt_batch(["ab", "c", "de", "f"]), "pretraining": text}])
    trainer(tmp_path, callbacks=[recorder]).fit(module, datamodule=data)
    (row,) = recorder.rows
    assert row["ppo/pretraining/loss"] == pytest.approx(loss.item(), rel=1e-5)
    after = [weights(model) for model in (module.trained_model, module.value_model)]
    policy, value = (10 * (new - old).norm().item() for new, old in zip(after, before, strict=True))
    assert row["ppo/policy/gradient_norm"] == pytest.approx(policy, rel=1e-3)
    assert row["ppo/value/gradient_norm"] == pytest.approx(value, rel=1e-3)
