"""Next-token loss: supervised fine-tuning, pretraining and the pretraining mix of PPO-ptx."""

from torch import Tensor

from instructlit.losses.base import LossSum
from instructlit.ops.log_probs import next_token_log_probs
from instructlit.ops.masking import masked_sum


def language_loss(logits: Tensor, input_ids: Tensor, loss_mask: Tensor) -> LossSum:
    """Minus the log-probability, in nats, of every token that is a target, and the number of targets.

    Args:
        logits: (B, T, V), the model's output for `input_ids`, not shifted, any float dtype.
        input_ids: (B, T) int64.
        loss_mask: (B, T), True where token t is a target; it is predicted by the logits of t - 1. The first column has
            nothing before it and never counts.

    Source: InstructGPT (arXiv 2203.02155) section 3.5 for SFT and the last term of equation 2 for the pretraining mix.
    """
    return target_loss(next_token_log_probs(logits, input_ids), loss_mask[:, 1:])


def target_loss(log_probs: Tensor, targets: Tensor) -> LossSum:
    """`language_loss` from given log-probs.

    Args:
        log_probs: (B, T), float32, in nats.
        targets: (B, T), True where the log-prob is that of a target.
    """
    return LossSum(-masked_sum(log_probs, targets), targets.sum().float())
