"""People as judges: their tasks are written to files without model names, and their labels are read back.

The files are our comparison records (`docs/data.md`), as `instructlit label import` reads them and `instructlit labels
export` writes them. They name no model, and the order of completions is random. A label is found by its prompt and
completions, whatever ids a tool has given it: any comparison that ranks two answers among others says which is
better.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructlit.errors import counted
from instructlit.evaluation.datasets import read_rows
from instructlit.evaluation.judging import Judge, Question, Verdict
from instructlit.files import write_rows
from instructlit.rubric import BEST, FLAGS, MAX_OUTPUTS, MIN_OUTPUTS, WORST
from instructlit.types import PromptText

PAIRS, RATINGS, SINGLE = "pairs", "ratings", "single"
"""The files of tasks: two answers side by side (`label import --kind evaluation`), all answers to a prompt one by one
(`--kind comparison`), and what the labelling tool does not ask, for another tool."""

Row = dict[str, Any]


class PeopleJudge(Judge):
    """Blind judgements by people. A pair is shown once, in a random order, which counts for both orders.

    Args:
        labels: labels or labeled rows to read, one file or a glob; while there is none, everything is pending.
        tasks: name of the files of what is still to be judged: to_label.jsonl gives to_label_pairs.jsonl and so on.
        seed: seed of the order of completions.
    """

    answers = frozenset(("compare", "rate", "decide"))
    both_orders = False

    def __init__(self, labels: str, tasks: str = "to_label.jsonl", seed: int = 0):
        self.labels, self.tasks, self.seed = labels, Path(tasks), seed
        self._waiting: dict[str, dict[str, Row]] = {PAIRS: {}, RATINGS: {}, SINGLE: {}}

    @property
    def title(self) -> str:
        return "people"

    def identity(self) -> dict[str, Any]:
        # labels may grow or be corrected, so that verdicts read before are not reused after a change
        return {"labels": self.labels, "state": [path.stat().st_mtime_ns for path in self._files()]}

    def check(self) -> None:
        self._known()

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        known = self._known()
        missing = False
        for index, question in enumerate(questions):
            said = [_said(question, row) for row in known.get(_spelled(question.prompt), [])]
            values = [value for value in said if value is not None]
            if values:
                yield index, Verdict(sum(values) / len(values), counted(len(values), "labeler"))
                continue
            self._wait(question)
            missing = True
            yield index, Verdict(None, "nobody has judged it yet", pending=True)
        if missing:
            self._write()

    def file(self, kind: str) -> Path:
        """The file of one kind of task: PAIRS, RATINGS or SINGLE."""
        return self.tasks.with_name(f"{self.tasks.stem}_{kind}{self.tasks.suffix}")

    def _files(self) -> list[Path]:
        path = Path(self.labels)
        return [path] if path.is_file() else sorted(path.parent.glob(path.name))

    def _known(self) -> dict[str, list[Row]]:
        """The labeled rows by prompt."""
        found: dict[str, list[Row]] = {}
        for file in self._files():
            for row in read_rows(str(file), "judge.labels", "prompt", "completions"):
                found.setdefault(_spelled(row["prompt"]), []).append(row)
        return found

    def _wait(self, question: Question) -> None:
        """Adds a task. Answers to one prompt are rated in one task, as in the paper, together with the yes/no questions
        of its Table 3."""
        if question.kind == "compare":
            row = {"prompt": question.prompt, "completions": self._shuffled(question, question.answers)}
            self._waiting[PAIRS][_spelled([question.prompt, *sorted(question.answers)])] = row
            return
        about: dict[str, str] = {}
        if question.kind == "decide" and question.about not in FLAGS:
            about = {"statement": question.criterion, "flag": question.about, "reference": question.reference}
        key = _spelled([question.prompt, *about.values()])
        before = self._waiting[RATINGS].get(key, {}).get("completions", [])
        answers = self._shuffled(question, {*before, *question.answers})
        self._waiting[RATINGS][key] = {"prompt": question.prompt, "completions": answers, **about}

    def _shuffled(self, question: Question, answers: Any) -> list[str]:
        ordered = sorted(answers)
        random.Random(f"{self.seed} {_spelled(question.prompt)} {ordered}").shuffle(ordered)
        return ordered

    def _write(self) -> None:
        """Writes all pending tasks. Those of an earlier evaluation that have been judged are not written again."""
        kinds: dict[str, list[Row]] = {PAIRS: list(self._waiting[PAIRS].values()), RATINGS: [], SINGLE: []}
        for row in self._waiting[RATINGS].values():
            fits = MIN_OUTPUTS <= len(row["completions"]) <= MAX_OUTPUTS and "flag" not in row
            kinds[RATINGS if fits else SINGLE].append(row)
        for kind, rows in kinds.items():
            if rows:
                write_rows(self.file(kind), rows)


def _said(question: Question, row: Mapping[str, Any]) -> float | None:
    """One labeler's answer to a question; None where the row has none."""
    try:
        places = [row["completions"].index(answer) for answer in question.answers]
        if question.kind == "compare":
            if len(set(places)) < 2:
                return None
            first, second = (row["ranks"][place] for place in places)
            return 1.0 if first < second else 0.0 if first > second else 0.5
        if question.kind == "rate":
            rating = float(row["ratings"][places[0]])
            return rating if WORST <= rating <= BEST else None
        return float(bool(row["flags"][places[0]][question.about]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def _spelled(value: PromptText | Sequence[Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
