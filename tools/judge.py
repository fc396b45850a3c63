"""`instructlit judge`: a judge in place of labelers, for any file of tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from instructlit.errors import UserError, counted
from instructlit.evaluation.judging import Desk, Judge, Question, Verdict, plan_text
from instructlit.evaluation.store import Store
from instructlit.labels import Label, Task, read_tasks, write_labels
from instructlit.tools.outputs import check_output

By = Literal["score", "rate", "compare"]
NAME = "judge"
UNREADABLE = "the judge gave no readable verdict"
_HALF = 0.5


def judge(
    judge: str,
    tasks: str,
    output: str = "labels.jsonl",
    *,
    by: Literal["auto", "score", "rate", "compare"] = "auto",
    options: list[str] = [],  # noqa: B006
    labeler: str | None = None,
    dry_run: bool = False,
) -> None:
    """Have a judge label a file of tasks in place of people: it ranks the completions of every task.

    A judge that scores ranks by score. One that compares is shown every pair in both orders; the completion preferred
    in both gets a point, each gets half if the judge contradicts itself or sees a tie, and the ranks follow the points.
    Equal points are a tie. Every verdict is saved next to the output as it arrives: if interrupted, the same command
    resumes and asks nothing twice.

    Args:
        judge: KIND:WHAT as in `instructlit evaluate --judges`, such as `reward:models/reward` or `api:gpt-4.1-mini`, or
            the class_path of a judge.
        tasks: file of tasks, as `instructlit collect` writes it.
        output: file of labels to write.
        by: whether it scores or rates (1 to 7) each completion, or compares each pair; by default it scores if it can,
            otherwise it compares.
        options: further options of the judge, each OPTION=VALUE, such as `base_url=http://localhost:8000/v1`.
        labeler: name of the labeler in its labels; by default the judge's own name.
        dry_run: report how many questions would be asked and their cost, without asking.
    """
    check_output(output, tasks)
    asked = [Sheet(task) for task in read_tasks(tasks)]
    one = made(judge, options)
    way = _way(one, by)
    for sheet in asked:
        if sheet.task.kind == "demonstration":
            raise UserError(
                f"task {sheet.task.task} is a demonstration",
                where=tasks,
                expected="tasks with completions: judges do not write answers",
            )
    store = Store(Path(output).with_suffix(".verdicts.jsonl"))
    questions = [question for sheet in asked for question in sheet.questions(way)]
    plan = Desk({NAME: one}, store, planning=True)
    plan.ask(NAME, questions)
    for line in plan_text(plan) or [f"{one.title}: no new questions"]:
        print(line, flush=True)
    if dry_run:
        return
    desk = Desk({NAME: one}, store)
    try:
        answers = desk.ask(NAME, questions)
    finally:
        store.close()
    verdicts = {question.key: verdict for question, verdict in zip(questions, answers, strict=True)}
    labels = [sheet.label(way, verdicts, labeler or one.title) for sheet in asked]
    write_labels(output, labels)
    print(f"{output}: {counted(len(labels), 'label')} by {labeler or one.title}")
    if desk.unreadable[NAME]:
        skipped = sum(label.skipped is not None for label in labels)
        said = f"{desk.unreadable[NAME]} verdicts were unreadable, such as {desk.examples[NAME]!r:.100}"
        print(f"{said}; {skipped} tasks have no ranks because of this")


@dataclass(frozen=True)
class Sheet:
    """Turns a task into questions to a judge, and the judge's verdicts into a label."""

    task: Task

    @property
    def texts(self) -> list[str]:
        """The distinct completions: equal ones are tied without asking."""
        return list(dict.fromkeys(self.task.completions))

    def questions(self, way: By) -> Iterator[Question]:
        """All questions about the task."""
        if way == "compare":
            for pair in combinations(self.texts, 2):
                yield from self._both_orders(pair)
        else:
            for text in self.texts:
                yield self._single(way, text)

    def label(self, way: By, verdicts: dict[str, Verdict], labeler: str) -> Label:
        """The resulting label; a task without a readable verdict is skipped, with the reason."""
        task = self.task
        points = self._points(verdicts) if way == "compare" else self._values(way, verdicts)
        ranks: list[int] | None = None
        ratings: list[int | None] | None = None
        skipped = None
        if points is None:
            skipped = UNREADABLE
        else:
            ranks = ranked([points[text] for text in task.completions])
            ratings = [round(points[text]) for text in task.completions] if way == "rate" else None
        return Label(
            task.task, task.kind, task.prompt, labeler, task.completions, ranks, ratings,
            policy=task.policy, round=task.round, skipped=skipped, use_case=task.use_case, user=task.user,
            ended=task.ended,
        )  # fmt: skip

    def _both_orders(self, pair: tuple[str, str]) -> tuple[Question, Question]:
        return self._question("compare", *pair), self._question("compare", *pair[::-1])

    def _single(self, way: By, text: str) -> Question:
        return self._question(way, text)

    def _question(self, way: By, *texts: str) -> Question:
        ended = dict(zip(self.task.completions, self.task.ended or (), strict=False))
        return Question(way, self.task.prompt, texts, ended=tuple(ended.get(text, True) for text in texts))

    def _values(self, way: By, verdicts: dict[str, Verdict]) -> dict[str, float] | None:
        """The score or rating of each text; None if one is missing, as it could not be ranked among the others."""
        found = {text: verdicts[self._single(way, text).key].value for text in self.texts}
        readable = {text: value for text, value in found.items() if value is not None}
        return readable if len(readable) == len(found) else None

    def _points(self, verdicts: dict[str, Verdict]) -> dict[str, float] | None:
        """The points of each text over all pairs; a pair unreadable in one order gives half to each.

        None if no pair was readable in both orders.
        """
        points, pairs = dict.fromkeys(self.texts, 0.0), list(combinations(self.texts, 2))
        unreadable = 0
        for pair in pairs:
            forth, back = (verdicts[question.key].value for question in self._both_orders(pair))
            if forth is None or back is None:
                unreadable += 1
                first = _HALF
            else:
                mean = (forth + 1 - back) / 2
                first = 1.0 if mean > _HALF else 0.0 if mean < _HALF else _HALF
            points[pair[0]] += first
            points[pair[1]] += 1 - first
        return None if pairs and unreadable == len(pairs) else points


def ranked(points: Sequence[float]) -> list[int]:
    """Ranks without gaps, 1 for the most points: 2.0, 0.5, 2.0 become 1, 2, 1."""
    order = sorted(set(points), reverse=True)
    return [order.index(value) + 1 for value in points]


def made(name: str, options: Sequence[str]) -> Judge:
    """The judge with this name and options.

    Raises:
        UserError: if there is no such kind, or it does not have an option.
    """
    from instructlit.tools.evaluate.suite import KINDS, built, value_of

    kind, colon, what = name.partition(":")
    given: dict[str, Any] = {}
    if kind == "people":
        raise UserError(
            "this command does not ask people", where="judge", fix="`instructlit label` serves the tasks to people"
        )
    if colon and kind in KINDS:
        path, option = KINDS[kind]
        given[option] = what
    elif not colon and "." in name:
        path = name
    else:
        kinds = ", ".join(kind for kind in KINDS if kind != "people")
        raise UserError(
            f"`{name}` is not a judge", where="judge", expected=f"KIND:WHAT with KIND one of {kinds}, or a class_path"
        )
    for text in options:
        option, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"`{text}` is not an option of a judge", where="--options", expected="OPTION=VALUE")
        given[option] = value_of(value, f"--options {text}")
    return built(Judge, {"class_path": path, "init_args": given}, "judge")


def _way(judge: Judge, by: str) -> By:
    """The kind of question to ask the judge.

    Raises:
        UserError: if it cannot answer this kind.
    """
    ways: tuple[By, ...] = ("score", "compare", "rate")
    able = [way for way in ways if way in judge.answers]
    if not able or (by != "auto" and by not in able):
        raise UserError(
            f"{judge.title} cannot {by if by != 'auto' else 'rank completions'}",
            where="judge" if by == "auto" else "--by",
            expected=" or ".join(able) if able else "a judge that scores, rates or compares",
        )
    return able[0] if by == "auto" else by  # type: ignore[return-value]
