"""What PPO cannot run with: useless options, a strategy that would hang, sizes and batches that do not fit."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import FSDPStrategy

from instructlit.errors import Range, UserError, require
from instructlit.modules.batches import check_batch, unfit
from instructlit.types import PromptBatch, TokenBatch

if TYPE_CHECKING:
    from instructlit.modules.ppo import PPOModule

RANGES: dict[Range, tuple[str, ...]] = {
    "a whole number above 0": ("episodes", "minibatch_size", "ppo_epochs"),
    "a number above 0": ("clip", "value_clip", "reward_timeout"),
    "a finite number above 0": ("max_kl",),
    "a finite number, 0 or more": ("value_learning_rate", "pretraining_coefficient"),
    "a number of at least 0 and below 1": ("ema_decay",),
}
"""Options of `PPOModule` by their range."""


def check_options(module: "PPOModule") -> None:
    """Refuse options with which PPO would learn nothing, or nonsense.

    Raises:
        UserError: for the first option of the kind.
    """
    for expected, options in RANGES.items():
        require(expected, "model.init_args.", **{name: getattr(module, name) for name in options})
    if module.sampling.greedy:
        raise UserError(
            "greedy decoding gives PPO nothing to learn from: every sample of a prompt is the same",
            where="model.init_args.sampling.greedy",
            expected="false",
        )
    if module.sampler_correction is not None and not module.sampler_correction >= 1:  # of NaN neither holds
        raise UserError(
            f"found {module.sampler_correction}",
            where="model.init_args.sampler_correction",
            expected="at least 1: the largest weight of a token",
        )


def check_strategy(module: "PPOModule") -> None:
    """Refuse a strategy under which ranks would wait for each other for ever.

    Raises:
        UserError: it is one.
    """
    if isinstance(module.trainer.strategy, FSDPStrategy):
        raise UserError(
            "FSDPStrategy gathers weights in every forward pass, so ranks whose responses differ in length would "
            "wait for each other forever",
            where="trainer.strategy",
            expected="a strategy that gathers weights once per rollout, or that does not shard them",
            fix="use --config configs/strategy/fsdp2.yaml, or ddp.yaml",
        )


def check_sizes(module: "PPOModule") -> None:
    """Refuse a minibatch size that does not divide a rollout, or that the devices do not divide.

    Raises:
        UserError: naming the three sizes.
    """
    if module.rollout_size % module.minibatch_size or module.minibatch_size % module.trainer.world_size:
        raise UserError(
            f"minibatch_size is {module.minibatch_size} and a rollout has {module.rollout_size} episodes, "
            f"on {module.trainer.world_size} devices",
            where="model.init_args.minibatch_size",
            expected="a divisor of data.init_args.batch_size and a multiple of the number of devices",
        )


def check_rollout_batch(module: "PPOModule", batch: Any) -> None:
    """Refuse a training batch that does not make a rollout.

    Raises:
        UserError: it has no prompts, prompts of another type, or another number of them than the run expects.
    """
    if not isinstance(batch, dict) or "prompts" not in batch:
        raise unfit(
            f"a training batch ({type(batch).__name__}) has no `prompts`",
            '{"prompts": PromptBatch}, and for PPO-ptx also "pretraining": TokenBatch',
        )
    check_batch(batch["prompts"], PromptBatch, "`prompts` of a training batch")
    if batch.get("pretraining") is not None:
        check_batch(batch["pretraining"], TokenBatch, "`pretraining` of a training batch")
    # The counts of episodes and updates and the KL's horizon depend on it.
    found = len(batch["prompts"]) * module.trainer.world_size
    if found != module.rollout_size:
        raise UserError(
            f"a training batch has {found} prompts over all devices, but `batch_size` is {module.rollout_size}",
            where="data",
            expected="`batch_size` prompts in every training batch",
            fix="drop the incomplete batch at the end of an epoch: drop_last of a DataLoader",
        )
