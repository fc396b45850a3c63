"""Where scores come from: a trained reward model, or a function of the user's."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.dropout import disable_dropout
from instructlit.models.scalar import ScalarModel
from instructlit.models.trunk import Trunks
from instructlit.types import PromptText, Responses


class RewardFunction(ABC):
    """One score a response. Subclass it (or `TextReward`) and name the subclass by `class_path` as PPO's `reward`."""

    def prepare(self, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - optional
        """Called before scores are asked for, more than once, with the policy's device and tokenizer."""

    @abstractmethod
    def score(self, responses: Responses) -> Tensor:
        """Scores (B,) float32 of the responses. Raise where a score cannot be had: it stops the run."""


class TextReward(RewardFunction):
    """A reward that reads text: implement `reward(prompt, response)`."""

    @abstractmethod
    def reward(self, prompt: PromptText, response: str) -> float:
        """The score of one response, the text before EOS with surrounding white space removed."""

    def score(self, responses: Responses) -> Tensor:
        scores = [
            self.reward(prompt.prompt, text) for prompt, text in zip(responses.prompts, responses.texts, strict=True)
        ]
        for row, value in enumerate(scores):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(
                    f"returned {value!r} for response {row}",
                    where=f"{type(self).__name__}.reward",
                    expected="a number for every response",
                    fix="return a number or raise an error that says why there is none",
                )
        return torch.tensor(scores, dtype=torch.float32, device=responses.response_ids.device)


class RewardModel(RewardFunction):
    """A trained reward model, frozen, that reads the very ids the policy sampled, EOS included.

    Args:
        model: the reward-model folder; its shift is part of the score.
        batch_size: sequences scored together; None takes all that are handed over.
    """

    def __init__(self, model: Backbone, batch_size: int | None = None):
        self.model = model
        self.batch_size = batch_size
        self.trunks: Trunks | None = None  # PPO's, so that the frozen weights are those of policy and value
        self._network: ScalarModel | None = None

    def prepare(self, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> None:
        if self._network is not None:
            self._network.to(device)
            return
        own = load_tokenizer(self.model.path, trust_remote_code=self.model.trust_remote_code)
        if own.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"the reward model {self.model.path} has another vocabulary than the policy",
                where="reward.init_args.model.path",
                expected="one tokenizer for policy, value and reward model, since scores are read from the sampled ids",
                fix="train the reward model from a backbone with the policy's tokenizer",
            )
        network = load_scalar_model(
            self.model, require_head=True, where="reward.init_args.model", trunks=self.trunks, frozen=True
        )
        disable_dropout(network)
        self._network = network.to(device)

    @torch.no_grad()
    def score(self, responses: Responses) -> Tensor:
        if self._network is None:
            raise RuntimeError("RewardModel.prepare has not been called")
        ids, mask = responses.input_ids, responses.attention_mask
        size = self.batch_size or max(len(ids), 1)
        return torch.cat([self._network.score(i, m) for i, m in zip(ids.split(size), mask.split(size), strict=True)])


def checked_scores(reward: RewardFunction, responses: Responses) -> Tensor:
    """The reward's scores as (B,) float32 on the responses' device.

    Raises:
        UserError: when there is not one finite number for each response. A reward that fails stops the run: training on
            a guess in its place would be worse.
    """
    scores = reward.score(responses)
    name = type(reward).__name__
    if not isinstance(scores, Tensor) or scores.shape != (len(responses),):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(
            f"returned {got}", where=f"{name}.score", expected=f"a tensor of {len(responses)} scores, one a response"
        )
    scores = scores.to(responses.response_ids.device, torch.float32)
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        value = float(scores[row])
        raise UserError(
            f"returned {'nan' if math.isnan(value) else value} for the response {responses.texts[row]!r}",
            where=f"{name}.score",
            expected="a finite score for every response",
            fix="raise an error in the reward where no score can be given",
        )
    return scores
