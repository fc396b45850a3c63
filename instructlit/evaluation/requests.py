"""What a model under evaluation is asked, and what it replies. A request is known by the hash of all that it says."""

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from instructlit.errors import require
from instructlit.types import PromptText


def fields_of(of: Any) -> dict[str, Any]:
    """The fields of a dataclass by their names; `asdict` would copy all that is in them, tens of thousands of times."""
    return {f.name: getattr(of, f.name) for f in fields(of)}


def stored_as(said: Any) -> str:
    """The name in the store of what says this, in plain values."""
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class _Keyed:
    @cached_property
    def key(self) -> str:
        """Its name in the store: equal requests have equal keys, whichever task they come from."""
        return stored_as([type(self).__name__, fields_of(self)])


@dataclass(frozen=True)
class Ask(_Keyed):
    """A prompt to be answered.

    Args:
        prompt: text or messages.
        max_new_tokens: most tokens in an answer.
        temperature: 0 takes the likeliest token each time (the paper's T = 0); above, samples are drawn.
        samples: answers wanted; more than one needs a temperature.
        stop: an answer ends before the first of these texts.
        plain: the prompt is text to be continued as it stands, without the chat template.
        stream: names the random numbers of the sampling; `{model}` in it stands for the model's name, so that two
            models draw independently. The requests of a named stream are drawn one after another, all or none of them.
        log_probs: the tokens of every answer and their log-probability are wanted as well.

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
        """The request as it is put to one model: `prefix` before the prompt, the stream its own."""
        prompt = self.prompt
        if prefix and isinstance(prompt, str):
            prompt = prefix + prompt
        elif prefix:
            prompt = [{"role": "system", "content": prefix.strip()}, *prompt]
        return replace(self, prompt=prompt, stream=self.stream.replace("{model}", model))


@dataclass(frozen=True)
class Weigh(_Keyed):
    """Texts whose log-probability after a context is wanted; nothing is drawn.

    An empty context stands for the beginning of a text. A choice that is longer than the model reads at once is read in
    windows, each token in one of them.

    Args:
        context: text or messages before the choices.
        choices: the texts, with the white space that parts them from the context; or tokens, as another model drew
            them.
        plain: the context stands as it is, without the chat template.
        document: without a context, a choice is a document as pretraining reads it: its end counts, and its first
            token, which nothing predicts, does not.
        says: what choices of tokens read; a model whose tokenizer reads them otherwise gives no reply.
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
        texts: one a sample.
        ended: by itself or at a stop text, rather than at the limit; empty where nobody knows.
        tokens: of each sample the tokens that were drawn, EOS included; where the request wants them.
        log_probs: of each sample the summed log-probability in nats at the temperature of the sampling; the same.
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
        """Whether each sample ended, which is taken for granted where nobody knows."""
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
        """Log-probability a token."""
        return [total / max(count, 1) for total, count in zip(self.log_probs, self.tokens, strict=True)]


Reply = Answer | Weights


def as_row(reply: Reply) -> dict[str, Any]:
    """A reply as plain values."""
    return {"kind": type(reply).__name__, **fields_of(reply)}


def from_row(row: dict[str, Any]) -> Reply:
    """What `as_row` wrote."""
    values = {name: value for name, value in row.items() if name != "kind"}
    return Answer(**values) if row["kind"] == "Answer" else Weights(**values)
