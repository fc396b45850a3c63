"""What a model under evaluation is asked, and what it replies. A request is identified by the hash of its fields."""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from instructlit.errors import require
from instructlit.types import PromptText


def fields_of(of: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, without the deep copies of `asdict`."""
    return {f.name: getattr(of, f.name) for f in fields(of)}


def stored_as(said: Any) -> str:
    """The key in the store of an object with these plain values."""
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class _Keyed:
    @cached_property
    def key(self) -> str:
        """Its key in the store: equal requests have equal keys, whichever task they come from."""
        return stored_as([type(self).__name__, fields_of(self)])


@dataclass(frozen=True)
class Ask(_Keyed):
    """A prompt to answer.

    Args:
        prompt: text or messages.
        max_new_tokens: most tokens in an answer.
        temperature: 0 takes the likeliest token each time (the paper's T = 0); above 0, answers are sampled.
        samples: number of answers; more than one needs a temperature.
        stop: an answer ends before the first of these texts.
        plain: the prompt is text to continue as it is, without the chat template.
        stream: names the random numbers of the sampling; `{model}` in it stands for the model's name, so that two
            models sample independently. The requests of a named stream are sampled in order, all or none of them.
        log_probs: return the tokens of every answer and their log-probability too.

    Raises:
        UserError: a temperature or a count out of range.
    """

    prompt: PromptText
    max_new_tokens: int = 512
    temperature: float = 0.0
    samples: int = 1
    stop: tuple[str, ...] = ()
    plain: bool = False
    stream: str = ""
    log_probs: bool = False

    def __post_init__(self) -> None:
        require("a finite number, 0 or more", temperature=self.temperature)
        require("a whole number above 0", max_new_tokens=self.max_new_tokens, samples=self.samples)

    def of(self, model: str, prefix: str) -> "Ask":
        """The request as one model gets it: with `prefix` before the prompt, and its own stream."""
        prompt = self.prompt
        if prefix and isinstance(prompt, str):
            prompt = prefix + prompt
        elif prefix:
            prompt = [{"role": "system", "content": prefix.strip()}, *prompt]
        return replace(self, prompt=prompt, stream=self.stream.replace("{model}", model))


@dataclass(frozen=True)
class Weigh(_Keyed):
    """Texts whose log-probability after a context is computed; nothing is sampled.

    An empty context is the beginning of a text. A choice that is longer than the model can read at once is read in
    windows, each token in one of them.

    Args:
        context: text or messages before the choices.
        choices: the texts, with the white space that separates them from the context; or tokens, as another model
            sampled them.
        plain: use the context as it is, without the chat template.
        document: without a context, a choice is a document as in pretraining: its end counts, and its first token,
            which nothing predicts, does not.
        says: the text of choices given as tokens; a model whose tokenizer decodes them otherwise gives no reply.
    """

    context: PromptText
    choices: tuple[str, ...] | tuple[tuple[int, ...], ...]
    plain: bool = True
    document: bool = False
    says: tuple[str, ...] = ()


Request = Ask | Weigh


@dataclass(frozen=True)
class Answer:
    """The reply to an `Ask`.

    Args:
        texts: one per sample.
        ended: for each sample whether it ended with EOS or at a stop text rather than at the limit; empty if unknown.
        tokens: the sampled tokens of each sample, EOS included; only if requested.
        log_probs: the summed log-probability of each sample in nats at the sampling temperature; only if requested.
    """

    texts: list[str]
    ended: list[bool] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The first answer."""
        return self.texts[0]

    @property
    def ends(self) -> list[bool]:
        """Whether each sample ended; True if unknown."""
        return self.ended or [True] * len(self.texts)


@dataclass(frozen=True)
class Weights:
    """The reply to a `Weigh`: for each choice its summed log-probability in nats, its tokens, and whether each of them
    was the likeliest."""

    log_probs: list[float]
    tokens: list[int]
    greedy: list[bool]

    @property
    def means(self) -> list[float]:
        """Mean log-probability per token."""
        return [total / max(count, 1) for total, count in zip(self.log_probs, self.tokens, strict=True)]


Reply = Answer | Weights


def as_row(reply: Reply) -> dict[str, Any]:
    """A reply as plain values."""
    return {"kind": type(reply).__name__, **fields_of(reply)}


def from_row(row: dict[str, Any]) -> Reply:
    """What `as_row` wrote."""
    values = {name: value for name, value in row.items() if name != "kind"}
    return Answer(**values) if row["kind"] == "Answer" else Weights(**values)
