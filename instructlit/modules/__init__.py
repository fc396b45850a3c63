"""One LightningModule a stage."""

from instructlit.modules.base import StageModule
from instructlit.modules.ppo import PPOModule
from instructlit.modules.reward_model import RewardModule
from instructlit.modules.sft import SFTModule

__all__ = ["PPOModule", "RewardModule", "SFTModule", "StageModule"]
