"""What must hold on the first rollout, checked before the run spends anything more (design: invariants at step 0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from instructlit.errors import UserError
from instructlit.models.backbone import Backbone
from instructlit.models.scalar import ScalarModel
from instructlit.models.sharding import gathered
from instructlit.modules.ppo_metrics import UpdateMetrics
from instructlit.ops.masking import masked_mean, masked_sum
from instructlit.ops.rewards import shape_rewards
from instructlit.rollout.forward import Chunks
from instructlit.rollout.reward import RewardModel
from instructlit.types import Rollout

if TYPE_CHECKING:
    from instructlit.modules.ppo import PPOModule

MEAN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest mean difference, in nats per token, between log-probs of one model computed in two ways, by its precision."""


CORRECTED_TOLERANCE = 0.1
"""The same with `sampler_correction`: more than two precisions of the same weights differ by."""


SCORED_ALONE = 8
"""Responses of the first rollout whose scores are computed again, each in its own forward pass."""


class InvariantError(UserError):
    """An invariant of PPO does not hold; training on would be silently wrong."""


def computed_in(module: PPOModule, model: nn.Module) -> torch.dtype:
    """The dtype that `model` computes in."""
    return torch.bfloat16 if "bf16" in str(module.trainer.precision) else next(model.parameters()).dtype


def tolerance(module: PPOModule, model: nn.Module, backbone: Backbone) -> float:
    """The bound for the precision that `model`, made from `backbone`, computes in."""
    dtype = computed_in(module, model)
    if backbone.quantization == "int8":
        # Its kernel rounds activations to 8 bits too: the last bit of a float32 sum, which depends on how rows are
        # batched, decides between two of 256 steps.
        dtype = torch.bfloat16
    return MEAN_TOLERANCE.get(dtype, 1e-4)


@torch.no_grad()
def check_rollout(module: PPOModule, rollout: Rollout) -> None:
    """Check sampler against trainer, policy against reference, scores against padding, rewards against scores.

    Raises:
        InvariantError: naming the invariant, what was found and the likely cause.
    """
    bound = tolerance(module, module.trained_model, module.backbone)
    mask = rollout.response_mask
    own = module.policy_log_probs(rollout)
    gap = float(masked_mean((own - rollout.sampled_log_probs).abs(), mask))
    allowed = bound if module.sampler_correction is None else max(bound, CORRECTED_TOLERANCE)
    _require(
        gap <= allowed,
        f"the engine's log-probs differ from the trainer's by {gap:.2g} nats per token",
        f"at most {allowed:g}",
        "make the engine sample from the distribution that the trainer computes (temperature, weights, precision);"
        " sampler_correction corrects for another precision",
    )
    if module.reference_backbone is None or module.reference_backbone.path == module.backbone.path:
        kl = float(masked_sum(own - rollout.ref_log_probs, mask) / len(rollout))
        limit = bound * max(1.0, float(mask.sum()) / len(rollout))
        _require(
            abs(kl) <= limit,
            f"the KL to the reference is {kl:.2g} nats before the first update",
            f"0 within {limit:.2g}, since policy and reference are the same folder",
            "make sure that dropout is off and that both are loaded in the same precision",
            _one_precision(module),
        )
    if isinstance(module.reward, RewardModel) and not module.reward.reads_text:
        (network,) = module.reward.networks()
        with gathered(network):
            few = rollout.rows(torch.arange(min(len(rollout), SCORED_ALONE), device=rollout.scores.device))
            shift = float((_alone_and_padded(network, few) - few.scores).abs().max())
        _require(
            shift <= 100 * tolerance(module, network, module.reward.model),
            f"computed alone, with seven more columns of padding, a response's score changes by {shift:.2g}",
            "no change",
            "use a reward model whose architecture respects the attention mask and the position ids",
        )
    bare = shape_rewards(rollout.scores, rollout.old_log_probs, rollout.ref_log_probs, mask, beta=0.0).sum(dim=1)
    off = float((bare - rollout.scores).abs().max())
    _require(off <= 1e-4, f"rewards without a KL penalty differ from their score by {off:.2g}", "the score", "")


def check_first_minibatch(module: PPOModule, metrics: UpdateMetrics) -> None:
    """Check that before any update the ratio is 1, approx-KL is 0 and nothing is clipped.

    Raises:
        InvariantError: where one is not.
    """
    bound = tolerance(module, module.trained_model, module.backbone)
    first = metrics.compute(module.sum_over_ranks)
    found = {
        "ratio_mean": abs(float(first["policy/ratio_mean"]) - 1),
        "approx_kl": abs(float(first["policy/approx_kl"])),
        "clip_fraction": float(first["policy/clip_fraction"]),
    }
    for name, distance in found.items():
        _require(
            distance <= bound,
            f"{name} of the first minibatch is off by {distance:.2g}",
            "ratio 1, approx-KL 0, clip fraction 0",
            "find out why the update computes different log-probs than the rollout",
        )


def _one_precision(module: PPOModule) -> str | None:
    """What to do where policy and reference compute in different dtypes."""
    models = module.trained_model, module.reference_model
    policy, reference = (str(computed_in(module, model)).removeprefix("torch.") for model in models)
    told = (
        f"the reference computes in {reference}, the policy in {policy}: set model.init_args.reference.dtype: {policy}"
    )
    return told if policy != reference else None


def _require(holds: bool, what: str, expected: str, cause: str, fix: str | None = None) -> None:
    if not holds:
        raise InvariantError(
            what,
            where="PPO self-check on the first rollout",
            expected=expected,
            fix=fix or (f"{cause}; model.init_args.self_check: false switches this check off" if cause else None),
        )


def _alone_and_padded(network: ScalarModel, rollout: Rollout) -> Tensor:
    """Scores (B,) of rows computed one by one, each trimmed and then padded on the left by seven columns."""
    rows = Chunks(rollout, size=1)

    def left(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (7, 0))

    return rows.joined([network.score(left(row.input_ids), left(row.attention_mask)) for row in rows])
