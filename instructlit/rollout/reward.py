"""Where scores come from: a trained reward model, or a function of the user's."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from instructlit.data.tokenization import Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError, class_path, raised_at, require
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.compatibility import check_vocabulary, positions
from instructlit.models.dropout import disable_dropout
from instructlit.models.scalar import ScalarModel
from instructlit.models.sharding import is_sharded
from instructlit.models.trunk import Trunks
from instructlit.rollout.forward import Chunks
from instructlit.rollout.time_limit import within
from instructlit.types import PromptText, Responses


class RewardFunction(ABC):
    """One score per response. Subclass it (or `TextReward`) and name the subclass by `class_path` as PPO's `reward`."""

    row: int | None = None
    """The response being scored, if they are scored one by one: for messages."""

    def prepare(self, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - optional
        """Called before scores are asked for, more than once, with the policy's device and tokenizer."""

    def networks(self) -> Iterable[nn.Module]:
        """The frozen networks that `score` runs, if any: PPO shards them if it shards its own."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """What scoring has changed in this reward on this rank, for a checkpoint: numbers, strings, tensors, and lists
        and dicts of them. Nothing here; override it in a reward that keeps, say, running statistics."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Continue from what `state_dict` returned."""

    @abstractmethod
    def score(self, responses: Responses) -> Tensor:
        """Scores (B,) float32 of the responses. Raise if there is no score: that stops the run."""


class TextReward(RewardFunction):
    """A reward that reads text: implement `reward(prompt, response)`."""

    @abstractmethod
    def reward(self, prompt: PromptText, response: str) -> float:
        """The score of one response, the text before EOS with surrounding white space removed."""

    def score(self, responses: Responses) -> Tensor:
        scores = []
        for self.row, (prompt, text) in enumerate(zip(responses.prompts, responses.texts, strict=True)):
            value = self.reward(prompt.prompt, text)
            if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are Real too
                raise UserError(
                    f"returned {value!r} for {told(responses, self.row)}",
                    where=f"{class_path(type(self))}.reward",
                    expected="a number for every response",
                    fix="return a number or raise an error that says why there is none",
                )
            scores.append(value)
        self.row = None
        return torch.tensor(scores, dtype=torch.float32, device=responses.response_ids.device)


class RewardModel(RewardFunction):
    """A trained reward model, frozen, that reads the very ids the policy sampled, EOS included.

    One with another tokenizer, EOS or chat template than the policy reads the text instead, as it read its own data:
    prompt and response are put into its template and encoded by its tokenizer. EOS follows where the response had
    ended, and nothing where it was cut off. The response's text is without white space at its ends and without special
    tokens.

    Args:
        model: the reward-model folder; its shift is part of the score.
        batch_size: sequences scored together; None takes all.
        template: the template it was trained with, as for the datamodules.
    """

    def __init__(self, model: Backbone, batch_size: int | None = None, template: str = "auto"):
        require("a whole number above 0", "reward.", batch_size=batch_size)
        self.model = model
        self.batch_size = batch_size
        self.template = template
        self.trunks: Trunks | None = None  # PPO's, so that the frozen weights are those of policy and value
        self._network: ScalarModel | None = None
        self._encoder: Encoder | None = None  # where the policy's ids are not what this model learned to read
        self._other = ""  # what is other than the policy's
        self._pad = 0
        self._cost_told = False

    def prepare(self, device: torch.device, tokenizer: PreTrainedTokenizerBase) -> None:
        if self._network is not None:
            if not is_sharded(self._network):
                self._network.to(device)
            return
        trusted = self.model.trust_remote_code
        own = load_tokenizer(self.model.path, trust_remote_code=trusted, pad_with_eos=True)
        check_vocabulary(self.model, own, "reward.init_args.model")
        network = load_scalar_model(
            self.model, require_head=True, where="reward.init_args.model", trunks=self.trunks, frozen=True
        )
        disable_dropout(network)
        self._network = network.to(device)
        encoder = Encoder(own, self.template, positions(network.hf.config))  # `own` then has its template
        facts = {
            "tokenizer": (own.get_vocab(), tokenizer.get_vocab()),
            "EOS": (own.eos_token_id, tokenizer.eos_token_id),
            "chat template": (own.chat_template, tokenizer.chat_template),
        }
        self._other = next((what for what, (mine, its) in facts.items() if mine != its), "")
        if self._other:
            self._encoder = encoder
            self._pad = int(own.pad_token_id)  # type: ignore[arg-type]

    def networks(self) -> Iterable[ScalarModel]:
        return () if self._network is None else (self._network,)

    @property
    def reads_text(self) -> bool:
        """Whether it reads text, as its tokenizer or template is another than the policy's; known once prepared."""
        return self._encoder is not None

    @torch.no_grad()
    def score(self, responses: Responses) -> Tensor:
        if self._network is None:
            raise RuntimeError("RewardModel.prepare has not been called")
        if self._encoder is not None:
            return self._score_text(self._network, self._encoder, responses)
        parts = Chunks(responses, self.batch_size)
        return parts.joined([self._network.score(part.input_ids, part.attention_mask) for part in parts])

    def _score_text(self, network: ScalarModel, encoder: Encoder, responses: Responses) -> Tensor:
        """Scores of the responses as the reward model's own tokenizer encodes them; reports once what that costs."""
        began = time.perf_counter()
        ids, mask = self._encoded_again(encoder, responses)
        encoded = time.perf_counter()
        size = self.batch_size or max(len(ids), 1)
        scores = torch.cat([network.score(i, m) for i, m in zip(ids.split(size), mask.split(size), strict=True)])
        if not self._cost_told:
            self._cost_told = True
            from lightning.pytorch.utilities import rank_zero_info  # 75 MiB that most readers of a model do not need

            rank_zero_info(
                f"The reward model {self.model.path} has another {self._other} than the policy and reads the responses "
                f"as text. Tokenizing the {len(responses)} responses of the first batch took {encoded - began:.2g} s "
                f"and scoring them {time.perf_counter() - encoded:.2g} s. White space around a response and special "
                "tokens in it are ignored; whether it ended is not."
            )
        return scores

    def _encoded_again(self, encoder: Encoder, responses: Responses) -> tuple[Tensor, Tensor]:
        """Right-padded ids (B, T) of the reward model's own tokenizer and their mask."""
        device = responses.response_ids.device
        columns = zip(responses.prompts, responses.texts, responses.ended.tolist(), strict=True)
        rows = [torch.tensor(encoder.example(p.prompt, text, ended).ids) for p, text, ended in columns]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(ids.shape[1], device=device) < lengths[:, None]


def told(responses: Responses, row: int | None) -> str:
    """A response and its prompt in a message; the first of them where the row is not known."""
    prompt = responses.prompts[row or 0].prompt
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    which = f"response {row}: " if row is not None else f"{len(responses)} responses, the first: "
    return f"{which}{_short(responses.texts[row or 0])} to the prompt {_short(text)}"


def checked_scores(reward: RewardFunction, responses: Responses, seconds: float | None = None) -> Tensor:
    """The reward's scores as (B,) float32 on the responses' device.

    Args:
        reward: where they come from.
        responses: B of them.
        seconds: most time that a reward of the user's may take (`rollout.time_limit` says what it ends); our own reward
            model has no limit.

    Raises:
        UserError: when there is not one finite number for each response, or not in time. A reward that fails stops the
            run: training on a guess in its place would be worse.
    """
    name, reward.row = class_path(type(reward)), None
    late = UserError(
        f"gave no scores for {len(responses)} responses within {seconds} seconds",
        where=f"{name}.score",
        expected="an answer in that time",
        fix="find out what it is waiting for, or raise the limit",
    )
    try:
        scores = within(None if isinstance(reward, RewardModel) else seconds, lambda: reward.score(responses), late)
    except UserError as error:
        if error is not late:
            raise
        raise UserError(
            f"{error.what}; it was at {told(responses, reward.row)}",
            where=error.where,
            expected=error.expected,
            fix=error.fix,
        ) from None
    except (Exception, SystemExit) as error:  # a reward that leaves would end the run as if it were done
        place = raised_at(error, type(reward))
        raise UserError(
            f"raised {type(error).__name__}: {error} ({place}) for {told(responses, reward.row)}",
            where=f"{name}.score" if reward.row is None else f"{name}.reward",
            expected="a score for every response",
            fix="INSTRUCTLIT_DEBUG=1 shows the stack trace; a reward that may fail has to retry by itself",
        ) from error
    fits = isinstance(scores, Tensor) and scores.shape == (len(responses),)
    if not fits or scores.is_complex() or scores.is_meta:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if fits:  # nothing real can be read from it
            got = scores.dtype if scores.is_complex() else "a tensor without numbers, on the meta device"
        raise UserError(
            f"returned {got} for {told(responses, None)}",
            where=f"{name}.score",
            expected=f"a tensor of shape ({len(responses)},), one real score per response",
        )
    scores = scores.to(responses.response_ids.device, torch.float32)
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        value = float(scores[row])
        raise UserError(
            f"returned {'nan' if math.isnan(value) else value} for {told(responses, row)}",
            where=f"{name}.score",
            expected="a finite score for every response",
            fix="raise an error in the reward where no score can be given",
        )
    return scores


def _short(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
