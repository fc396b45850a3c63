"""A reward model as a judge."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from instructlit.data.collate import collate_tokens
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.evaluation.judges.text import judging_prompt
from instructlit.evaluation.judging import Judge, Question, Verdict
from instructlit.evaluation.language_model import usable_device
from instructlit.evaluation.subjects import fingerprint
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.dropout import disable_dropout
from instructlit.ops.micro_batches import spans


class RewardJudge(Judge):
    """A trained reward model: the answer with the higher score is better, equal scores tie.

    It knows no scale from 1 to 7; it scores on its own, with the shift that makes demonstrations average 0. A statement
    is decided by which reply to the judging prompt it scores higher, "Yes" or "No": take that for what it is worth, a
    reward model was not trained on it.

    Args:
        model: folder of a reward model.
        batch_tokens: most tokens scored together, padding included.
        dtype: dtype to compute in.
        device: "auto", "cpu", "cuda", ...
        template: the template it was trained with.
    """

    answers = frozenset(("compare", "decide", "score"))

    def __init__(
        self,
        model: str,
        batch_tokens: int = 16_384,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str = "auto",
        template: str = "auto",
    ):
        self.model, self.batch_tokens, self.device, self.template = model, batch_tokens, device, template
        self.dtype: Literal["float32", "bfloat16", "float16"] = dtype
        self._network: Any = None
        self._encoder: Encoder | None = None

    @property
    def title(self) -> str:
        return self.model

    def identity(self) -> dict[str, Any]:
        return {"model": fingerprint(self.model), "template": self.template, "dtype": self.dtype}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        block = 256
        for start in range(0, len(questions), block):
            part = questions[start : start + block]
            pairs = [pair for question in part for pair in _asked(question)]
            scores, at = self.scored(pairs), 0
            for place, question in enumerate(part):
                own = scores[at : at + len(_asked(question))]
                at += len(own)
                yield start + place, _verdict(question, own)

    @torch.no_grad()
    def scored(self, pairs: Sequence[tuple[Any, str]]) -> list[float]:
        """Scores of (prompt, response) pairs, each response with its EOS.

        A pair that is there twice is scored once: in another batch its score could differ in the last digit, and equal
        answers would not tie.
        """
        network, encoder = self._loaded()
        places: dict[str, int] = {}
        own = [places.setdefault(json.dumps(pair), len(places)) for pair in pairs]
        rows = [encoder.example(*json.loads(pair)) for pair in places]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        found = [0.0] * len(rows)

        def padded(start: int, stop: int) -> int:
            return (stop - start) * len(rows[order[stop - 1]].ids)

        for start, stop in spans(len(rows), None, self.batch_tokens, padded):
            chosen = order[start:stop]
            batch = collate_tokens([_whole(rows[i]) for i in chosen], self._pad).to(self._place)
            for i, score in zip(chosen, network.score(batch.input_ids, batch.attention_mask).tolist(), strict=True):
                found[i] = score
        return [found[place] for place in own]

    def _loaded(self) -> tuple[Any, Encoder]:
        if self._network is None or self._encoder is None:
            tokenizer: Any = load_tokenizer(self.model)
            network: Any = load_scalar_model(
                Backbone(self.model, dtype=self.dtype), require_head=True, where="judge.model", frozen=True
            )
            self._place = usable_device(self.device)
            disable_dropout(network)
            self._network = network.eval().to(self._place)
            longest = getattr(network.hf.config.get_text_config(), "max_position_embeddings", None)
            self._encoder, self._pad = Encoder(tokenizer, self.template, longest), int(tokenizer.pad_token_id)
        return self._network, self._encoder


def _asked(question: Question) -> list[tuple[Any, str]]:
    """The prompt and response pairs whose scores answer a question."""
    if question.kind == "decide":
        return [(judging_prompt(question), "Yes"), (judging_prompt(question), "No")]
    return [(question.prompt, answer) for answer in question.answers]


def _verdict(question: Question, scores: Sequence[float]) -> Verdict:
    told = ", ".join(f"{score:.4f}" for score in scores)
    if question.kind == "score":
        return Verdict(scores[0], told)
    first, second = scores
    return Verdict(1.0 if first > second else 0.0 if first < second else 0.5, told)


def _whole(row: Encoded) -> Encoded:
    """The row as one text: nothing of it is a target."""
    return Encoded(row.ids, 0)
