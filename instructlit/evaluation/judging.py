"""Questions to a judge, and the desk that asks them once and keeps every answer.

A judge is asked about one prompt: which of two answers is better, how good an answer is, or whether something holds of
an answer. Whatever reads text can be a judge. A reply that says none of the things asked for is no verdict: it is
counted and shown, and scores for nobody.
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
from instructlit.errors import UserError, counted
from instructlit.evaluation.requests import Answer, Reply, fields_of, stored_as
from instructlit.evaluation.store import Store
from instructlit.types import PromptText

Kind = Literal["compare", "rate", "decide", "score"]
SCALES: dict[str, tuple[int, int]] = {"compare": (0, 1), "decide": (0, 1), "rate": (1, 7)}
"""What a verdict may be; a score has a scale of its own."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Args:
        kind: "compare" two answers (1 the first is better, 0 the second, 0.5 a tie), "rate" one from 1 to 7, "decide"
            whether `criterion` holds of one (1 yes, 0 no; a classifier may say a probability), or "score" one on a
            scale of the judge's own.
        prompt: what was answered.
        answers: two to compare, else one.
        criterion: the statement to decide on, in words.
        reference: what the judge may lean on: a right answer, a context, the false premise.
        about: the criterion's short name.
        ended: of each answer whether it ended by itself, rather than at a limit; empty where nobody knows.
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
        """Its name in the store."""
        said = fields_of(self)
        if all(self.ended):  # which is what is taken for granted where nobody knows
            del said["ended"]
        return stored_as(said)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer.

    Args:
        value: what `Question.kind` says; None where there is none.
        said: what the judge said, for people.
        pending: nobody has been asked yet, or a person has not answered yet; not the judge's failure.
    """

    value: float | None
    said: str = ""
    pending: bool = False

    @property
    def unreadable(self) -> bool:
        """The judge answered and the answer means nothing."""
        return self.value is None and not self.pending


def about_samples(kind: Kind, prompt: PromptText, reply: Reply | None) -> list[Question]:
    """A question about each sample of an answer; none where there is no answer."""
    if not isinstance(reply, Answer):
        return []
    return [Question(kind, prompt, (text,), ended=(end,)) for text, end in zip(reply.texts, reply.ends, strict=True)]


class Judge(ABC):
    """Subclass it and name the subclass by `class_path` in a suite."""

    answers: frozenset[Kind] = frozenset(("compare", "rate", "decide", "score"))
    """The kinds of question it can be asked."""

    both_orders = True
    """Whether it looks at each order of a pair by itself, so that a favourite place would show."""

    @abstractmethod
    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """The verdict on every question with its index, in any order, each as soon as it is there.

        Raises:
            UserError: a verdict cannot be had at all; what was yielded before is kept.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that its verdicts depend on, without secrets: a stored verdict holds for the same identity."""

    def check(self) -> None:  # noqa: B027 - optional
        """Called before models reply, which may take hours: say what will keep it from a verdict, as far as that shows
        without a question and without weights.

        Raises:
            UserError: a key that is not set, a folder that is none, a package that is not installed.
        """

    def cost(self, questions: Sequence[Question]) -> str:
        """What asking these will cost, in words; "" where it costs nothing but time."""
        return ""

    def release(self) -> None:  # noqa: B027 - optional
        """Called when no more questions are expected: memory can be given back."""

    @property
    def marks(self) -> Kind:
        """How it says of one answer how good that is: "score" on a scale of its own, else "rate" from 1 to 7."""
        return "score" if "score" in self.answers else "rate"

    @property
    def title(self) -> str:
        """What a report calls it."""
        return type(self).__name__


class LoadedJudge(Judge):
    """A judge with a model in this process: loaded when it is first asked, and held until it is released."""

    _model: Any = None

    @abstractmethod
    def _load(self) -> Any:
        """What answers, on its device.

        Raises:
            UserError: it cannot be had.
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
        store: of verdicts.
        planning: nothing is asked; what would be is counted, and every new verdict is pending.
    """

    def __init__(self, judges: Mapping[str, Judge], store: Store, planning: bool = False):
        self.judges, self.store, self.planning = judges, store, planning
        self.planned: dict[str, dict[str, Question]] = {}
        self.unreadable: Counter[str] = Counter()
        self.pending: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # of unreadable replies, one a judge
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
                fix="name it under `judges` in the suite, or give --judges NAME=WHAT",
            )
        return self.judges[name]

    def check(self, name: str) -> None:
        """Say what will keep a judge from verdicts, but nothing of one that has given some: they may be all there is to
        ask for.

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
                expected=f"a judge that can, as this one can {' and '.join(sorted(judge.answers))}",
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
            f"{name} gave {value} where it is asked to {question.kind}, for {question.answers[0][:80]!r}",
            where="judge",
            expected=f"a number from {low} to {high}, or None where it has no verdict",
        )
    return value


def plan_text(desk: Desk) -> list[str]:
    """What a planning desk found still to be asked, one sentence a judge."""
    lines = []
    for name, questions in desk.planned.items():
        if not questions:
            continue
        cost = desk.judges[name].cost(list(questions.values()))
        asked = counted(len(questions), "question")
        lines.append(f"{name} ({desk.judges[name].title}): {asked}{f'; {cost}' if cost else ''}")
    return lines


def _prefix(judge: Judge) -> str:
    own = f"{type(judge).__module__}.{type(judge).__qualname__}"
    told = json.dumps([own, judge.identity()], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16] + "-"
