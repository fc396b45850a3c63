"""One LightningModule a stage."""

from instructlit.modules.base import StageModule
from instructlit.modules.ppo import PPOModule
from instructlit.modules.reward_model import RewardModule
from instructlit.modules.sft import SFTModule
from instructlit.modules.strategy import FSDP2Strategy

__all__ = ["FSDP2Strategy", "PPOModule", "RewardModule", "SFTModule", "StageModule"]
