"""A reward model as a judge."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from instructlit.dtypes import Dtype
from instructlit.errors import require
from instructlit.evaluation.judges.text import judging_prompt
from instructlit.evaluation.judging import LoadedJudge, Question, Verdict
from instructlit.evaluation.language_model import usable_device
from instructlit.evaluation.reward_scores import RewardScores, check_reward_model
from instructlit.evaluation.subjects import fingerprint
from instructlit.types import PromptText


class RewardJudge(LoadedJudge):
    """A trained reward model: the answer with the higher score is better, equal scores tie.

    It does not rate from 1 to 7; it scores on its own scale, with the shift that makes demonstrations average 0. An
    answer that was cut off is scored without EOS, as in training. A statement is decided by which reply to the judging
    prompt scores higher, "Yes" or "No": read that with care, a reward model was not trained on it. A score that is not
    finite is no verdict.

    Args:
        model: folder of a reward model.
        batch_tokens: most tokens scored together, padding included.
        dtype: dtype to compute in.
        device: "auto", "cpu", "cuda", ...
        template: the template it was trained with.
    """

    answers = frozenset(("compare", "decide", "score"))
    both_orders = False  # each answer is scored alone

    def __init__(
        self,
        model: str,
        batch_tokens: int = 16_384,
        dtype: Dtype = "float32",
        device: str = "auto",
        template: str = "auto",
    ):
        require("a whole number above 0", "judge.", batch_tokens=batch_tokens)
        self.model, self.batch_tokens, self.device, self.template = model, batch_tokens, device, template
        self.dtype: Dtype = dtype

    @property
    def title(self) -> str:
        return self.model

    def identity(self) -> dict[str, Any]:
        return {"model": fingerprint(self.model), "template": self.template, "dtype": self.dtype}

    def check(self) -> None:
        check_reward_model(self.model, "judge.model", self.template)
        usable_device(self.device)

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        block = 256
        for start in range(0, len(questions), block):
            part = questions[start : start + block]
            scores, at = self._loaded().scores([row for question in part for row in _asked(question)]), 0
            for place, question in enumerate(part):
                own = scores[at : at + len(_asked(question))]
                at += len(own)
                yield start + place, _verdict(question, own)

    def _load(self) -> RewardScores:
        place = usable_device(self.device)
        return RewardScores(self.model, place, self.template, self.dtype, tokens=self.batch_tokens, where="judge.model")


def _asked(question: Question) -> list[tuple[PromptText, str, bool]]:
    """The prompts and responses, with whether they ended, whose scores answer a question."""
    if question.kind == "decide":
        return [(judging_prompt(question), said, True) for said in ("Yes", "No")]
    ended = question.ended or (True,) * len(question.answers)
    return [(question.prompt, answer, end) for answer, end in zip(question.answers, ended, strict=True)]


def _verdict(question: Question, scores: Sequence[float]) -> Verdict:
    told = ", ".join(f"{score:.4f}" for score in scores)
    if not all(map(math.isfinite, scores)):
        return Verdict(None, told)
    if question.kind == "score":
        return Verdict(scores[0], told)
    first, second = scores
    return Verdict(1.0 if first > second else 0.0 if first < second else 0.5, told)
