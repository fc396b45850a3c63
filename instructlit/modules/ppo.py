"""PPO against a reward with a KL penalty and a pretraining mix (arXiv 2203.02155, p. 9 equation 2, and p. 42).

Deviations from the paper, with their reasons: one optimiser holds policy and value network as two parameter groups, so
that one step of it is one policy update, and each network's gradient is clipped on its own. GAE's lambda (0.95) and the
value clip (0.2) are not in the paper; they are those of its ancestors. A response without EOS is scored -1 by default.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from instructlit.losses import LossSum, policy_loss, sampler_weights, value_loss
from instructlit.models.adapters import reference_view
from instructlit.models.backbone import Backbone
from instructlit.models.export import check_no_source
from instructlit.models.packed import can_pack
from instructlit.models.ranks import on_every_rank
from instructlit.models.schedules import ConstantWithWarmup
from instructlit.models.sharding import gathered
from instructlit.modules.actor_critic import ActorCritic
from instructlit.modules.base import read_from
from instructlit.modules.invariants import check_first_minibatch, check_rollout
from instructlit.modules.mean import Mean
from instructlit.modules.nonfinite import NonFinite
from instructlit.modules.ppo_metrics import UpdateMetrics, rollout_metrics
from instructlit.modules.ppo_refusals import check_options, check_rollout_batch, check_sizes, check_strategy
from instructlit.modules.rescue import together
from instructlit.ops.kl import sequence_kl
from instructlit.ops.kl_control import FixedKL, KLController, coefficient_of
from instructlit.ops.masking import masked_sum
from instructlit.ops.moments import RunningMoments
from instructlit.rollout import (
    CachedEngine,
    ExternalEngine,
    GenerationEngine,
    RewardFunction,
    Sampling,
    Shaping,
    build_rollout,
    checked_scores,
    minibatch_indices,
)
from instructlit.rollout.engine import called, checked_generation
from instructlit.rollout.forward import (
    Chunks,
    R,
    log_probs_and_entropy,
    response_log_probs,
    response_values,
)
from instructlit.rollout.samples import sample_rows
from instructlit.types import Generation, PromptBatch, Responses, Rollout, TokenBatch


class PPOModule(ActorCritic):
    """One training batch is one rollout: sample, score, estimate advantages, then update in minibatches.

    Args:
        policy: the SFT model, to be trained.
        reward: source of the scores: `instructlit.rollout.RewardModel` or a class of yours.
        value: the model that the value network is initialised from: the reward model, head included (p. 41).
        reference: the frozen model to which the KL is measured; None takes the policy's own folder or, if the policy is
            trained with LoRA, the policy with its adapters off.
        episodes: responses sampled in the whole run; 256,000 in the paper.
        minibatch_size: episodes in one optimiser step, over all ranks; 64 in the paper.
        ppo_epochs: passes over each rollout; 1 in the paper.
        sampling: length limit and temperature of the responses.
        shaping: from scores to rewards to advantages.
        kl: constant or adaptive KL coefficient.
        clip: range of the policy ratio around 1.
        value_clip: range of the value around its prediction at the rollout.
        pretraining_coefficient: gamma of PPO-ptx; used when the data has pretraining text.
        ema_decay: decay of the moving average of the policy, updated at every step; None keeps none.
        max_kl: stop the run when a rollout's mean KL, in nats per response, exceeds this.
        reward_timeout: seconds that a reward of yours may take for a batch of responses before the run stops; None sets
            no limit.
        engine: the generation engine.
        sampler_correction: the largest weight of truncated importance sampling, by which the policy loss corrects for
            an engine that draws from a policy a little different from the trainer's; 2 is usual. It costs a forward
            pass over each rollout. None takes the engine's log-probs for the trainer's, as those of `CachedEngine` are.
        optimizer: the optimiser of policy and value network; its learning rate is the policy's. By default AdamW with
            learning rate 9e-6, betas 0.9 and 0.95, eps 1e-5, no weight decay.
        value_learning_rate: learning rate of the value network.
        lr_scheduler: the schedule, in optimiser steps.
        micro_batch_size: sequences in one forward and backward; None takes a minibatch at once.
        micro_batch_tokens: most tokens in one forward and backward, padding included where rows are not packed; a
            longer row goes alone.
        gradient_clip_norm: largest gradient norm of a step, of policy and value network each.
        nonfinite: what to do at a step whose loss or gradient is NaN or infinite.
        self_check: verify the invariants on the first rollout, and stop if one fails.
    """

    stage = "ppo"
    asks_data_for = ("tokenizer", "batch_size")
    batch_kind = PromptBatch

    def __init__(
        self,
        policy: Backbone,
        reward: RewardFunction,
        value: Backbone,
        reference: Backbone | None = None,
        episodes: int = 256_000,
        minibatch_size: int = 64,
        ppo_epochs: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen set of numbers, and what --help shows
        shaping: Shaping = Shaping(),  # noqa: B008
        kl: KLController = FixedKL(),  # noqa: B008
        clip: float = 0.2,
        value_clip: float = 0.2,
        pretraining_coefficient: float = 27.8,
        ema_decay: float | None = 0.992,
        max_kl: float | None = None,
        reward_timeout: float | None = 1800.0,
        engine: GenerationEngine = CachedEngine(),  # noqa: B008
        sampler_correction: float | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(
            p, lr=9e-6, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0, fused=True
        ),
        value_learning_rate: float = 9e-6,
        lr_scheduler: LRSchedulerCallable | None = ConstantWithWarmup,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        nonfinite: NonFinite = NonFinite(),  # noqa: B008
        self_check: bool = True,
    ):
        super().__init__(
            policy,
            reward,
            value,
            reference,
            value_learning_rate,
            ema_decay,
            optimizer,
            lr_scheduler,
            micro_batch_size,
            gradient_clip_norm,
            nonfinite,
            micro_batch_tokens,
        )
        self.sampling, self.shaping, self.kl, self.engine = sampling, shaping, kl, engine
        self.episodes, self.minibatch_size, self.ppo_epochs = episodes, minibatch_size, ppo_epochs
        self.clip, self.value_clip = clip, value_clip
        self.pretraining_coefficient, self.max_kl, self.self_check = pretraining_coefficient, max_kl, self_check
        self.reward_timeout, self.sampler_correction = reward_timeout, sampler_correction
        check_options(self)
        self.moments = RunningMoments()
        self.episodes_seen = 0
        self.generator: torch.Generator | None = None
        self.validation_rows: list[dict[str, Any]] = []
        # Over responses: Lightning's own mean over ranks is wrong where they have different numbers of them.
        self.validation_means = nn.ModuleDict({name: Mean() for name in ("score", "kl", "length")})
        self.engine_synced = False  # whether the engine has the policy's weights as they are
        self.last_rollout: Rollout | None = None  # for callbacks to look at
        self._resumed: dict[str, Any] | None = None

    def row_lengths(self) -> dict[str, int]:
        lengths, prompt = super().row_lengths(), "data.init_args.max_prompt_length"
        if prompt in lengths:
            both = f"{prompt} + model.init_args.sampling.max_new_tokens"
            lengths[both] = lengths.pop(prompt) + self.sampling.max_new_tokens
        return lengths

    # -- the run ---------------------------------------------------------------------------------------------------

    @property
    def rollout_size(self) -> int:
        """Episodes of one training batch, over all ranks."""
        return int(self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps of one training batch."""
        return self.ppo_epochs * (self.rollout_size // self.minibatch_size)

    @property
    def rollouts(self) -> int:
        """Training batches of the whole run: until its episodes are sampled, or the Trainer's own limits end it."""
        trainer = self.trainer
        ends: list[float] = [-(-self.episodes // self.rollout_size)]
        if trainer.max_steps >= 0:  # in updates, looked at where a rollout ends
            ends.append(-(-trainer.max_steps // self.updates_per_batch))
        if trainer.max_epochs not in (None, -1) and trainer.estimated_stepping_batches:  # which counts the batches
            ends.append(trainer.max_epochs * trainer.num_training_batches)  # type: ignore[operator]
        return int(min(ends))

    def total_updates(self) -> int:
        return self.rollouts * self.updates_per_batch

    def progress(self) -> tuple[int, int, str]:
        return self.episodes_seen, min(self.episodes, self.rollouts * self.rollout_size), "episode"

    def setup(self, stage: str) -> None:
        check_strategy(self)
        super().setup(stage)
        check_sizes(self)
        coefficient_of(self.kl)
        self.kl.check(self.rollout_size)
        if batches := int(self.trainer.fast_dev_run):  # type: ignore[attr-defined]
            # Lightning has set as many optimiser steps.
            self.trainer.fit_loop.epoch_loop.max_steps = batches * self.updates_per_batch
        if isinstance(self.engine, ExternalEngine) and self.engine.folder is not None:
            check_no_source(self.engine.folder, read_from(self), "model.init_args.engine.init_args.folder")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(torch.initial_seed() % 2**31 + 100_003 * self.global_rank)
        if self._resumed is not None:
            self._restore(self._resumed)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.place_frozen()
        self.validation_rows = []

    def on_test_start(self) -> None:
        self.place_frozen()
        self.validation_rows = []

    on_predict_start = on_test_start

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        first = self.self_check and self.episodes_seen == 0
        rollout = self.collect(batch["prompts"])
        if first:
            check_rollout(self, rollout)
        metrics = UpdateMetrics(self.device)
        for _ in range(self.ppo_epochs):
            for index, text in self._minibatches(rollout, batch.get("pretraining")):
                self.update(rollout.rows(index), text, metrics)
                if first and metrics.updates == 1:
                    check_first_minibatch(self, metrics)
        self._finish(rollout, metrics)

    def check_training_batch(self, batch: Any) -> None:
        check_rollout_batch(self, batch)

    @torch.no_grad()
    def collect(self, prompts: PromptBatch) -> Rollout:
        """Sample a response to each prompt and estimate what each of its tokens was worth.

        Sharded models are gathered one after the other, once each, so that no rank waits for another whose
        responses are longer.
        """
        generation, scores = self._sample(prompts, self.generator)
        parts = self._parts(generation)
        with gathered(self.value_model):
            values = parts.joined([response_values(self.value_model, part) for part in parts])
        with gathered(self.reference_model):
            reference = parts.joined([self.reference_log_probs(part) for part in parts])
        own = None if self.sampler_correction is None else self.policy_log_probs(generation)
        shaping, beta = self.shaping, coefficient_of(self.kl)
        return build_rollout(
            generation, scores, reference, values, shaping, beta, self.moments, self.sum_over_ranks, own
        )

    def _sample(self, prompts: PromptBatch, generator: torch.Generator | None) -> tuple[Generation, Tensor]:
        """Responses and their scores."""
        engine, model, tokenizer = self.engine, self.trained_model, self.tokenizer

        def generate() -> Generation:
            found = called(
                engine, "generate", lambda: engine.generate(model, prompts, self.sampling, tokenizer, generator)
            )
            return checked_generation(engine, prompts, found)

        if not self.engine_synced:
            together(self.trainer, lambda: called(engine, "sync", lambda: engine.sync(model, tokenizer)))
            self.engine_synced = True
        with gathered(model):
            generation = together(self.trainer, generate)
        with gathered(*self.reward.networks()):
            return generation, self.scored(generation)

    def scored(self, responses: Responses) -> Tensor:
        """The reward's scores (B,) float32.

        Raises:
            UserError: on every rank, where the reward of one of them fails.
        """
        return together(self.trainer, lambda: checked_scores(self.reward, responses, self.reward_timeout))

    @torch.no_grad()
    def policy_log_probs(self, responses: Responses) -> Tensor:
        """Log-probs (B, R) of the policy by the trainer's own forward, at the sampling temperature."""
        parts = self._parts(responses)
        with gathered(self.trained_model):
            found = [response_log_probs(self.trained_model, part, self.sampling.temperature) for part in parts]
        return parts.joined(found)

    @torch.no_grad()
    def reference_log_probs(self, responses: Responses) -> Tensor:
        """Log-probs (B, R) of the frozen reference at the sampling temperature."""
        if self.frozen_reference:
            return response_log_probs(self.frozen_reference[0], responses, self.sampling.temperature)
        with reference_view(self.trained_model):
            return response_log_probs(self.trained_model, responses, self.sampling.temperature)

    def update(self, minibatch: Rollout, text: TokenBatch | None, metrics: UpdateMetrics) -> None:
        """One optimiser step on grad(PPO) + gamma * grad(pretraining loss), and on the value loss."""
        tokens = self.sum_over_ranks(minibatch.response_mask.sum().float())
        parts = list(self._parts(minibatch))
        before = metrics.state()

        def ppo(part: Rollout) -> LossSum:
            log_probs, entropy = log_probs_and_entropy(self.trained_model, part, self.sampling.temperature)
            old, mask, weights = part.old_log_probs, part.response_mask, None
            if self.sampler_correction is not None:
                weights = sampler_weights(old, part.sampled_log_probs, mask, self.sampler_correction)
                metrics.add("sampler", {"weight_mean": masked_sum(weights, mask)}, mask)
            loss, stats = policy_loss(log_probs, old, part.advantages, mask, self.clip, weights)
            metrics.add("policy", stats | {"entropy": masked_sum(entropy, mask)}, mask)
            if not metrics.updates:  # the weights are still those that were sampled from
                gap = (log_probs.detach() - part.sampled_log_probs).abs()
                metrics.add("engine", {"gap": masked_sum(gap, mask)}, mask)
            return loss

        def value(part: Rollout) -> LossSum:
            values = response_values(self.value_model, part)
            loss, stats = value_loss(values, part.values, part.returns, part.response_mask, self.value_clip)
            metrics.add("value", stats, part.response_mask)
            return loss

        losses = {"policy/loss": self.accumulate(parts, ppo, tokens)}
        if text is not None:
            losses["pretraining/loss"], _ = self.accumulate_tokens(text, self.pretraining_coefficient)
        losses["value/loss"] = self.accumulate(parts, value, tokens)
        self.engine_synced = False
        policy_norm, value_norm = self.step_optimizer([self.trained_model, self.value_model], losses)
        if self.guard.in_a_row:
            metrics.restore(before)  # what was not learnt from is not measured either
            return
        if self.ema is not None:
            self.ema.update()
        metrics.add_update(losses | {"policy/gradient_norm": policy_norm, "value/gradient_norm": value_norm})

    def _minibatches(self, rollout: Rollout, text: TokenBatch | None) -> Iterator[tuple[Tensor, TokenBatch | None]]:
        """A shuffle of the rollout in minibatches, each with its share of the pretraining text."""
        size = self.minibatch_size // self.trainer.world_size
        indices = minibatch_indices(len(rollout), size, self.generator, self.device)
        share = len(text) // len(indices) if text is not None else 0
        for i, index in enumerate(indices):
            yield index, text.rows(slice(i * share, (i + 1) * share)) if text is not None else None

    def _parts(self, responses: R) -> Chunks[R]:
        models = [self.trained_model, self.value_model.backbone, *self.frozen_reference]
        packed = all(can_pack(model, self.device) for model in models)
        return Chunks(responses, self.micro_batch_size, self.micro_batch_tokens, packed=packed)

    def _finish(self, rollout: Rollout, metrics: UpdateMetrics) -> None:
        """Update the KL coefficient, log, and end the run when it is done or has diverged."""
        self.episodes_seen += self.rollout_size
        self.last_rollout = rollout
        figures = rollout_metrics(rollout, coefficient_of(self.kl), self.sum_over_ranks)
        figures |= metrics.compute(self.sum_over_ranks)
        kl = float(figures["objective/kl"])
        if math.isfinite(kl):  # the coefficient would never recover from it
            self.kl.update(kl, self.rollout_size)
        figures |= {"episodes": float(self.episodes_seen), "lr": self.learning_rate()}
        figures["skipped_steps"] = float(self.guard.skipped)
        self.log_dict({f"ppo/{name}": value for name, value in figures.items()})
        if self.max_kl is not None and kl > self.max_kl:
            self.print(
                f"PPO stops: the KL to the reference is {kl:.1f} nats per response, above max_kl={self.max_kl}. "
                "Raise the KL coefficient or lower the learning rate."
            )
            self.trainer.should_stop = True
        if self.episodes_seen >= self.episodes:
            self.trainer.should_stop = True

    # -- evaluation on held-out prompts ----------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        generation, scores = self._sample(batch, self._look(batch_idx))
        kl = self._kl(generation)
        lengths = generation.response_mask.sum(dim=1).float()
        for name, values in {"score": scores, "kl": kl, "length": lengths}.items():
            mean: Any = self.validation_means[name]
            mean.update(values.sum(), len(values))
            self.log(f"ppo/{self.held_out}/{name}", mean, on_epoch=True, prog_bar=name == "score")
        if self.trainer.state.fn == TrainerFn.FITTING:  # the x-axis, which not every rollout logs
            self.log_dict({"ppo/episodes": float(self.episodes_seen)}, on_epoch=True, reduce_fx="max")
        self.validation_rows += sample_rows(generation, scores, kl, self.episodes_seen)

    test_step = validation_step

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The samples of a batch with score, KL and length; another seed draws others."""
        generation, scores = self._sample(batch, self._look(batch_idx, torch.initial_seed()))
        return sample_rows(generation, scores, self._kl(generation), self.episodes_seen)

    def _look(self, batch_idx: int, seed: int = 0) -> torch.Generator:
        """A generator for each batch and rank: validation leaves training unchanged, and validations are comparable."""
        own = 1_000_003 + batch_idx + 7919 * self.global_rank
        return torch.Generator(self.device).manual_seed((2_000_003 * seed + own) % 2**63)

    def _kl(self, generation: Generation) -> Tensor:
        with gathered(self.reference_model):
            reference = self.reference_log_probs(generation)
        return sequence_kl(generation.log_probs, reference, generation.response_mask)

    # -- state -----------------------------------------------------------------------------------------------------

    def stateful(self) -> dict[str, Any]:
        return super().stateful() | {"model.init_args.kl": self.kl, "model.init_args.reward": self.reward}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["instructlit"]["ppo"] = {
            "episodes_seen": self.episodes_seen,
            "kl": self.kl.state_dict(),
            "moments": self.moments.state_dict(),
            "ema": self.ema_state(),
            "rewards": on_every_rank(self.reward.state_dict()),
            "generators": on_every_rank(self.generator.get_state() if self.generator is not None else None),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["instructlit"]["ppo"]
        self.episodes_seen, self._resumed, self.engine_synced = int(kept["episodes_seen"]), kept, False
        if self.sharded:  # such a strategy reads a checkpoint only after `on_fit_start`
            self._restore(kept)

    def _restore(self, state: dict[str, Any]) -> None:
        self.kl.load_state_dict(state["kl"])
        self.moments.load_state_dict(state["moments"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if (states := state.get("rewards")) and self.global_rank < len(states):
            self.reward.load_state_dict(states[self.global_rank])
        generators = state["generators"]
        if self.generator is not None and self.global_rank < len(generators):
            self.generator.set_state(generators[self.global_rank].cpu())
        self._resumed = None
