"""PPO's options reach what they are named for: a step's length, the penalty, the clips, the rates, the streams."""

from dataclasses import replace

import pytest
import torch
from stage_helpers import FixedBatches, Recorder, ppo_module, prompt_batch, sgd, text_batch, trainer, weights
from torch import nn

from instructlit.losses import policy_loss, value_loss
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.schedules import LinearToZero
from instructlit.modules import PPOModule
from instructlit.ops import AdaptiveKL, FixedKL, RunningMoments, gae, shape_rewards, whiten
from instructlit.rollout import RewardModel, Sampling, Shaping
from instructlit.rollout.collect import minibatch_indices
from instructlit.rollout.forward import response_values

PROMPTS = {"prompts": prompt_batch(["ab", "say hello ", "x", "count to 3 ", "1", "qq", "mnop", "r"])}


def run(root, module, tokenizer, rollouts=1):
    """The metrics of each rollout; the same responses to the first, whatever the module's options."""
    recorder = Recorder()
    module.configure_model()
    torch.manual_seed(3)
    trainer(root, callbacks=[recorder]).fit(module, datamodule=FixedBatches(tokenizer, [PROMPTS] * rollouts))
    return recorder.rows


def test_each_gradient_is_cut_down_on_its_own_and_told_as_it_was(tmp_path, tiny_llama_dir, char_tokenizer):
    def moved(bound):
        """How far policy and value network went in a step of rate 1, and their gradients' norms as logged."""
        torch.manual_seed(0)  # draws the value network's head
        module = ppo_module(
            tiny_llama_dir, optimizer=sgd(1.0), value_learning_rate=1.0, gradient_clip_norm=bound, minibatch_size=8
        )
        module.configure_model()
        models = module.trained_model, module.value_model
        before = [weights(model) for model in models]
        (row,) = run(tmp_path, module, char_tokenizer)
        steps = [float((weights(model) - old).norm()) for model, old in zip(models, before, strict=True)]
        return steps, [row["ppo/policy/gradient_norm"], row["ppo/value/gradient_norm"]]

    steps, norms = moved(None)
    assert steps == pytest.approx(norms, rel=1e-3)
    assert min(steps) > 0.01
    assert norms[0] != pytest.approx(norms[1], rel=0.1)
    assert moved(0.01) == (pytest.approx([0.01, 0.01], rel=1e-2), pytest.approx(norms, rel=1e-4))


@torch.no_grad()
def by_hand(model, rollout, temperature):
    """Log-probs (B, R) and entropies (B, R) of a rollout's tokens, row by row without padding; zero elsewhere."""
    found = torch.zeros(2, *rollout.response_ids.shape)
    for row, (prompt, mask) in enumerate(zip(rollout.prompt_mask, rollout.response_mask, strict=True)):
        said = rollout.response_ids[row][mask]
        ids = torch.cat([rollout.prompt_ids[row][prompt], said])
        log_probs = (model(input_ids=ids[None]).logits[0, -len(said) - 1 : -1] / temperature).log_softmax(-1)
        found[0, row, mask] = log_probs.gather(1, said[:, None])[:, 0]
        found[1, row, mask] = -(log_probs.exp() * log_probs).sum(-1)
    return found


@pytest.mark.parametrize("adapters", [False, True], ids=["a reference of its own", "adapters off"])
def test_every_log_prob_is_at_the_sampling_temperature(
    tmp_path, tiny_llama_dir, tiny_gpt2_dir, char_tokenizer, adapters
):
    """Sampler, trainer, update and reference (checklist 14): at 1 none could be told from another."""
    whole, other = Backbone(str(tiny_llama_dir)), Backbone(str(tiny_gpt2_dir))
    models = {"policy": replace(whole, lora=Lora(rank=2))} if adapters else {"policy": whole, "reference": other}
    sampling = Sampling(max_new_tokens=6, temperature=0.7)
    module = ppo_module(tiny_llama_dir, sampling=sampling, minibatch_size=8, sampler_correction=2.0, **models)
    (row,) = run(tmp_path, module, char_tokenizer)
    made = module.last_rollout
    assert made is not None
    log_probs, entropies = by_hand(load_causal_lm(whole).eval(), made, 0.7)
    reference = log_probs if adapters else by_hand(load_causal_lm(other).eval(), made, 0.7)[0]
    for found, expected in (
        (made.sampled_log_probs, log_probs),
        (made.old_log_probs, log_probs),
        (made.ref_log_probs, reference),
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert row["ppo/policy/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert row["ppo/policy/entropy"] == pytest.approx(float(entropies.sum() / made.response_mask.sum()), abs=1e-4)
    assert (by_hand(load_causal_lm(whole).eval(), made, 1.0)[0] - log_probs).abs().max() > 0.1


def test_the_kl_coefficient_weighs_the_penalty(tmp_path, tiny_llama_dir, tiny_gpt2_dir, char_tokenizer):
    module = ppo_module(tiny_llama_dir, reference=Backbone(str(tiny_gpt2_dir)), kl=FixedKL(0.5))
    run(tmp_path, module, char_tokenizer)
    made = module.last_rollout
    assert made is not None
    assert ((made.old_log_probs - made.ref_log_probs)[made.response_mask].abs() > 1e-3).any()
    expected = shape_rewards(made.scores, made.old_log_probs, made.ref_log_probs, made.response_mask, 0.5)
    assert torch.equal(made.rewards, expected)


def test_the_kl_coefficient_is_steered_by_the_episodes_of_a_rollout(tmp_path, tiny_llama_dir, char_tokenizer):
    module = ppo_module(tiny_llama_dir, kl=AdaptiveKL(0.1, target=6.0, horizon=50), minibatch_size=4)
    (row,) = run(tmp_path, module, char_tokenizer)
    # the policy is the reference: an error of -100 %, clipped to -20 %, over 8 of 50 episodes
    assert module.kl.coefficient == pytest.approx(0.1 * (1 - 0.2 * 8 / 50))
    assert row["ppo/objective/kl_coefficient"] == pytest.approx(0.1), "what the rollout was shaped by"


def test_the_kl_coefficient_is_steered_by_the_kl_of_whole_responses(
    tmp_path, tiny_llama_dir, tiny_gpt2_dir, char_tokenizer
):
    """Summed over each response and not per token (checklist 25)."""
    told = []

    class Noted(AdaptiveKL):
        def update(self, mean_sequence_kl, n_episodes):
            told.append(mean_sequence_kl)
            super().update(mean_sequence_kl, n_episodes)

    module = ppo_module(tiny_llama_dir, reference=Backbone(str(tiny_gpt2_dir)), kl=Noted(0.1, horizon=50))
    run(tmp_path, module, char_tokenizer)
    made = module.last_rollout
    assert made is not None
    kl = float((made.old_log_probs - made.ref_log_probs)[made.response_mask].sum() / len(made))
    assert abs(kl) > 1e-3
    assert told == [pytest.approx(kl, rel=1e-3)]


def test_the_kl_coefficient_is_steered_by_the_episodes_of_all_ranks(tmp_path, tiny_llama_dir, char_tokenizer):
    """A rank sees eight of sixteen: the batch size of the data is over all of them."""
    module = ppo_module(tiny_llama_dir, kl=AdaptiveKL(0.1, horizon=50), episodes=32)
    module.check_training_batch = lambda batch: None  # there is one rank only, which sees half
    data = FixedBatches(char_tokenizer, [PROMPTS])
    data.batch_size = 16
    trainer(tmp_path).fit(module, datamodule=data)
    assert module.episodes_seen == 16
    assert module.kl.coefficient == pytest.approx(0.1 * (1 - 0.2 * 16 / 50))


def test_a_rollout_is_shaped_by_the_statistics_of_all_ranks(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch):
    """Whatever the other ranks add to the sums is in the whitening and in the moments of the scores (checklist 20)."""
    shaping = Shaping(missing_eos="keep", whiten_rewards=True, normalize_scores=True)
    module = ppo_module(tiny_llama_dir, shaping=shaping, self_check=False)
    monkeypatch.setattr(module, "sum_over_ranks", lambda x: x + 1)
    run(tmp_path, module, char_tokenizer)
    made, moments = module.last_rollout, RunningMoments()
    assert made is not None
    moments.update(made.scores, made.ended, reduce=lambda x: x + 1)
    scores, mask = moments.normalized(made.scores), made.response_mask
    rewards = shape_rewards(scores, made.old_log_probs, made.ref_log_probs, mask, module.kl.coefficient)
    rewards = whiten(rewards, mask, shift_mean=False, reduce=lambda x: x + 1)
    advantages, returns = gae(rewards, made.values, mask)
    expected = (rewards, whiten(advantages, mask, reduce=lambda x: x + 1), returns)
    for found, own in zip((made.rewards, made.advantages, made.returns), expected, strict=True):
        torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-5)


def test_an_update_is_over_the_tokens_of_all_ranks(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch):
    """Beside a rank with as many tokens and as much text, a rank's own part of the gradient is half (checklist 27)."""

    def moved(ranks):
        torch.manual_seed(0)  # draws the value network's head
        module = ppo_module(tiny_llama_dir, minibatch_size=8, micro_batch_size=3)
        monkeypatch.setattr(module, "sum_over_ranks", lambda x: ranks * x)
        module.configure_model()
        models = module.trained_model, module.value_model
        before = [weights(model) for model in models]
        torch.manual_seed(3)
        batch = PROMPTS | {"pretraining": text_batch(["some text", "and more of it"])}
        trainer(tmp_path).fit(module, datamodule=FixedBatches(char_tokenizer, [batch]))
        return [weights(model) - start for model, start in zip(models, before, strict=True)]

    for whole, half in zip(moved(1), moved(2), strict=True):
        torch.testing.assert_close(half, whole / 2, atol=2e-6, rtol=0)
        assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("network", ["policy", "value", "reference"])
def test_the_dropout_of_each_network_is_off(tiny_gpt2_dir, network):
    noisy = Backbone(str(tiny_gpt2_dir), dropout=0.5)
    module = ppo_module(tiny_gpt2_dir, **{network: noisy})
    with pytest.warns(UserWarning, match=rf"^model\.init_args\.{network}\.dropout: 0\.5 is not used"):
        module.configure_model()
    assert all(part.p == 0 for model in module._models() for part in model.modules() if isinstance(part, nn.Dropout))


def test_the_dropout_of_a_reward_model_is_off(tmp_path, tiny_gpt2_dir, char_tokenizer):
    folder = export_folder(load_scalar_model(Backbone(str(tiny_gpt2_dir))), char_tokenizer, tmp_path / "reward")
    reward = RewardModel(Backbone(str(folder), dropout=0.5))
    reward.prepare(torch.device("cpu"), char_tokenizer)
    (network,) = reward.networks()
    assert {part.p for part in network.modules() if isinstance(part, nn.Dropout)} == {0}


def test_a_second_pass_is_held_to_the_rollout(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch):
    """By each clip of its own, and weighed by the policy that was sampled from."""
    module = ppo_module(
        tiny_llama_dir, minibatch_size=8, ppo_epochs=2, clip=1e-3, value_clip=1e-2, sampler_correction=2.0
    )
    expected = []
    update = module.update

    def noted(part, text, metrics):
        mask, now = part.response_mask, module.policy_log_probs(part)
        policy, figures = policy_loss(now, part.old_log_probs, part.advantages, mask, clip=1e-3)
        with torch.no_grad():
            values = response_values(module.value_model, part)
        value, held = value_loss(values, part.values, part.returns, mask, clip=1e-2)
        shares = [x["clip_fraction"] / mask.sum() for x in (figures, held)]
        expected.append([float(x) for x in (policy.mean(), value.mean(), *shares)])
        update(part, text, metrics)

    monkeypatch.setattr(module, "update", noted)
    (row,) = run(tmp_path, module, char_tokenizer)
    first, second = expected
    assert first[2:] == [0, 0]
    assert min(second[2:]) > 0.1
    names = ("policy/loss", "value/loss", "policy/clip_fraction", "value/clip_fraction")
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert [row[f"ppo/{name}"] for name in names] == pytest.approx(means, abs=1e-5, rel=1e-5)
    assert row["ppo/sampler/weight_mean"] == pytest.approx(1, abs=1e-5)


def test_the_value_network_has_a_rate_of_its_own(tmp_path, tiny_llama_dir, char_tokenizer):
    module = ppo_module(tiny_llama_dir, value_learning_rate=0.0)
    module.configure_model()
    policy, value = weights(module.trained_model), weights(module.value_model)
    (row,) = run(tmp_path, module, char_tokenizer)
    assert torch.equal(weights(module.value_model), value)
    assert not torch.equal(weights(module.trained_model), policy)
    assert row["ppo/lr"] == pytest.approx(0.1), "the policy's"


def test_a_rate_that_falls_to_0_is_there_after_the_last_update(tmp_path, tiny_llama_dir, char_tokenizer):
    """12 episodes are two rollouts of 8, and each is two minibatches, learnt from twice: eight updates."""
    module = ppo_module(tiny_llama_dir, episodes=12, ppo_epochs=2, lr_scheduler=LinearToZero)
    rows = run(tmp_path, module, char_tokenizer, rollouts=2)
    assert [row["ppo/lr"] for row in rows] == pytest.approx([0.05, 0])


def test_minibatches_are_dealt_by_the_stream_of_the_run():
    def dealt(seed):
        return torch.stack(minibatch_indices(8, 4, torch.Generator().manual_seed(seed), torch.device("cpu")))

    assert torch.equal(dealt(0), dealt(0))
    assert not torch.equal(dealt(0), dealt(1))
    assert sorted(dealt(0).flatten().tolist()) == list(range(8))


def test_each_rank_draws_from_a_stream_of_its_own_and_goes_on_with_it(
    tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch
):
    data = FixedBatches(char_tokenizer, [PROMPTS])

    def drawn_from(rank, seed, checkpoint=None):
        """The stream of that rank behind a run, or behind one that goes on from its end and so draws nothing."""
        monkeypatch.setattr(PPOModule, "global_rank", rank)
        module = ppo_module(tiny_llama_dir)
        torch.manual_seed(seed)
        fit = trainer(tmp_path)
        fit.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        fit.save_checkpoint(tmp_path / "ended.ckpt")
        assert module.generator is not None
        return module.generator.get_state()

    states = [drawn_from(rank, seed=1) for rank in range(2)]
    assert not torch.equal(*states)
    kept = torch.load(tmp_path / "ended.ckpt", weights_only=True)
    kept["instructlit"]["ppo"]["generators"] = states
    torch.save(kept, tmp_path / "both.ckpt")
    for rank in range(2):
        assert torch.equal(drawn_from(rank, seed=2, checkpoint=tmp_path / "both.ckpt"), states[rank])


def test_an_average_may_begin_in_a_run_that_goes_on(tmp_path, tiny_llama_dir, char_tokenizer):
    data = FixedBatches(char_tokenizer, [PROMPTS])
    fit = trainer(tmp_path)
    fit.fit(ppo_module(tiny_llama_dir, ema_decay=None), datamodule=data)
    fit.save_checkpoint(tmp_path / "ended.ckpt")
    module = ppo_module(tiny_llama_dir, ema_decay=0.9)
    trainer(tmp_path).fit(module, datamodule=data, ckpt_path=tmp_path / "ended.ckpt", weights_only=True)
    assert module.ema is not None
    before = weights(module.trained_model)
    with module.ema.swapped():
        assert torch.equal(weights(module.trained_model), before), "of the weights as they were then"


def test_every_batch_and_rank_of_a_validation_draws_numbers_of_its_own(
    tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch
):
    prompts = PROMPTS["prompts"]
    data = FixedBatches(char_tokenizer, [PROMPTS], validation=[prompts, prompts])

    def batches(rank):
        monkeypatch.setattr(PPOModule, "global_rank", rank)
        module = ppo_module(tiny_llama_dir)
        trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        texts = tuple(row["response"] for row in module.validation_rows)
        assert any(not row["ended"] for row in module.validation_rows)
        assert all(row["ended"] or row["length"] == 6 for row in module.validation_rows), "a cut one has 6 tokens"
        return [texts[:8], texts[8:]]

    assert batches(0) == batches(0), "looks compare"
    assert len({*batches(0), *batches(1)}) == 4
