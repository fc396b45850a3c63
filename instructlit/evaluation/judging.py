"""Questions to a judge, and the desk that asks each once and keeps every answer.

A judge is asked about one prompt: which of two answers is better, how good an answer is, or whether a statement holds
for an answer. Anything that reads text can be a judge. A reply without any of the expected verdicts is counted and
shown as unreadable, and enters no score.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from instructlit.data.chat import plain_text
from instructlit.errors import UserError, class_path, counted
from instructlit.evaluation.requests import Answer, Reply, fields_of, stored_as
from instructlit.evaluation.store import Store
from instructlit.types import PromptText

Kind = Literal["compare", "rate", "decide", "score"]
SCALES: dict[str, tuple[int, int]] = {"compare": (0, 1), "decide": (0, 1), "rate": (1, 7)}
"""The range of each kind of verdict; a score has its own scale."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Args:
        kind: "compare" two answers (1 the first is better, 0 the second, 0.5 a tie), "rate" one from 1 to 7, "decide"
            whether `criterion` holds for one (1 yes, 0 no; a classifier may return a probability), or "score" one on
            the judge's own scale.
        prompt: the prompt that was answered.
        answers: two to compare, otherwise one.
        criterion: the statement to decide on, in words.
        reference: what the judge may rely on: a correct answer, a context, the false premise.
        about: the criterion's short name.
        ended: for each answer whether it ended with EOS rather than at a limit; empty if unknown.
    """

    kind: Kind
    prompt: PromptText
    answers: tuple[str, ...]
    criterion: str = ""
    reference: str = ""
    about: str = ""
    ended: tuple[bool, ...] = ()

    @property
    def prompt_text(self) -> str:
        """The prompt as text."""
        return (
            self.prompt
            if isinstance(self.prompt, str)
            else plain_text(self.prompt).removesuffix("Assistant:\n").strip()
        )

    @cached_property
    def key(self) -> str:
        """Its key in the store."""
        said = fields_of(self)
        if all(self.ended):  # the default if it is unknown
            del said["ended"]
        return stored_as(said)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer.

    Args:
        value: as `Question.kind` describes; None if there is no verdict.
        said: the judge's own words, for people to read.
        pending: nobody has been asked yet, or a person has not answered yet; not the judge's failure.
    """

    value: float | None
    said: str = ""
    pending: bool = False

    @property
    def unreadable(self) -> bool:
        """The judge answered, but not with a verdict."""
        return self.value is None and not self.pending


def about_samples(kind: Kind, prompt: PromptText, reply: Reply | None) -> list[Question]:
    """A question about each sample of an answer; empty if there is no answer."""
    if not isinstance(reply, Answer):
        return []
    return [Question(kind, prompt, (text,), ended=(end,)) for text, end in zip(reply.texts, reply.ends, strict=True)]


class Judge(ABC):
    """Base class of judges; a suite names a subclass by `class_path`."""

    answers: frozenset[Kind] = frozenset(("compare", "rate", "decide", "score"))
    """The kinds of question it can be asked."""

    both_orders = True
    """Whether it judges each order of a pair separately, so that a position bias would show."""

    @abstractmethod
    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """The verdict on every question with its index, in any order, each as soon as it is available.

        Raises:
            UserError: no further verdict is possible; those yielded before are kept.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that its verdicts depend on, without secrets: a stored verdict is reused for the same identity."""

    def check(self) -> None:  # noqa: B027 - optional
        """Called before models reply, which may take hours: check what a verdict will need, as far as that is possible
        without a question and without loading weights.

        Raises:
            UserError: a key is not set, a folder does not exist, a package is not installed.
        """

    def cost(self, questions: Sequence[Question]) -> str:
        """What asking these will cost, in words; "" if it costs only time."""
        return ""

    def release(self) -> None:  # noqa: B027 - optional
        """Called when no more questions are expected: memory can be freed."""

    @property
    def marks(self) -> Kind:
        """How it grades one answer: "score" on its own scale, else "rate" from 1 to 7."""
        return "score" if "score" in self.answers else "rate"

    @property
    def title(self) -> str:
        """Its name in a report."""
        return type(self).__name__


class LoadedJudge(Judge):
    """A judge with a model in this process: loaded at the first question, and kept until it is released."""

    _model: Any = None

    @abstractmethod
    def _load(self) -> Any:
        """The model, on its device.

        Raises:
            UserError: it cannot be loaded.
        """

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def release(self) -> None:
        self._model = None


class Desk:
    """Puts questions to named judges; a question asked before is answered from the store.

    Args:
        judges: by the name that tasks use.
        store: the store of verdicts.
        planning: ask nothing, but count what would be asked; every new verdict is pending.
    """

    def __init__(self, judges: Mapping[str, Judge], store: Store, planning: bool = False):
        self.judges, self.store, self.planning = judges, store, planning
        self.planned: dict[str, dict[str, Question]] = {}
        self.unreadable: Counter[str] = Counter()
        self.pending: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # of unreadable replies, one per judge
        self._prefixes = {name: _prefix(judge) for name, judge in judges.items()}

    def judge(self, name: str) -> Judge:
        """The judge of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.judges:
            raise UserError(
                f"there is no judge called {name}",
                where="judge",
                expected=f"one of {', '.join(self.judges)}" if self.judges else "a suite with `judges`",
                fix="add it under `judges` in the suite, or with --judges NAME=KIND:WHAT",
            )
        return self.judges[name]

    def check(self, name: str) -> None:
        """Check a judge, unless it has given verdicts already: those may be all that is needed.

        Raises:
            UserError: as `judge` and `Judge.check`.
        """
        judge = self.judge(name)
        if not any(key.startswith(self._prefixes[name]) for key in self.store):
            judge.check()

    def ask(self, name: str, questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts on the questions, in their order; the same question twice is asked once."""
        judge, prefix = self.judge(name), self._prefixes.get(name, "")
        for kind in {question.kind for question in questions} - judge.answers:
            raise UserError(
                f"{name} ({judge.title}) cannot {kind}",
                where="judge",
                expected=f"another judge; this one can {' and '.join(sorted(judge.answers))}",
            )
        fresh = {q.key: q for q in questions if prefix + q.key not in self.store}
        waiting: dict[str, Verdict] = {}
        if self.planning:
            self.planned.setdefault(name, {}).update(fresh)
        elif fresh:
            asked = list(fresh.values())
            for index, verdict in judge.verdicts(asked):
                if verdict.pending:
                    waiting[asked[index].key] = verdict
                else:
                    told = {"judge": name, "kind": asked[index].kind, "about": asked[index].about}
                    value = _checked(name, asked[index], verdict.value)
                    self.store.put(prefix + asked[index].key, [value, verdict.said], **told)
        found = [self._found(prefix, q.key, waiting) for q in questions]
        self._count(name, {q.key: v for q, v in zip(questions, found, strict=True)})
        return found

    def _found(self, prefix: str, key: str, waiting: Mapping[str, Verdict]) -> Verdict:
        kept = self.store.get(prefix + key)
        return waiting.get(key, Verdict(None, pending=True)) if kept is None else Verdict(kept[0], kept[1])

    def _count(self, name: str, verdicts: Mapping[str, Verdict]) -> None:
        for verdict in verdicts.values():
            self.unreadable[name] += verdict.unreadable
            self.pending[name] += verdict.pending
            if verdict.unreadable:
                self.examples.setdefault(name, verdict.said)


def _checked(name: str, question: Question, value: float | None) -> float | None:
    if value is None or question.kind not in SCALES:
        return value
    low, high = SCALES[question.kind]
    if not low <= value <= high:
        raise UserError(
            f"{name} returned {value} when asked to {question.kind} {question.answers[0][:80]!r}",
            where="judge",
            expected=f"a number from {low} to {high}, or None if it has no verdict",
        )
    return value


def plan_text(desk: Desk) -> list[str]:
    """What a planning desk found still to be asked, one sentence per judge."""
    lines = []
    for name, questions in desk.planned.items():
        if not questions:
            continue
        cost = desk.judges[name].cost(list(questions.values()))
        asked = counted(len(questions), "question")
        lines.append(f"{name} ({desk.judges[name].title}): {asked}{f'; {cost}' if cost else ''}")
    return lines


def _prefix(judge: Judge) -> str:
    own = class_path(type(judge))
    told = json.dumps([own, judge.identity()], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16] + "-"
