"""People as judges: what they are to look at is written out blind, and what they said is read back.

The files are our comparison records (`docs/data.md`), one row a judgement: `prompt`, `completions` (two for A/B, one
for a rating or a statement) and `id`; for a statement `criterion` too. They name no model, and which answer comes first
is drawn for each pair. A labeled row has `ranks` (1 = best, equal = tie), `ratings` (1-7), or `flags` with the
criterion's name.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.evaluation.datasets import read_rows
from instructlit.evaluation.judging import Judge, Question, Verdict


class PeopleJudge(Judge):
    """Blind judgements by people. A pair is shown once, in an order that was drawn; it stands for both orders.

    Args:
        labels: labeled rows to read; where the file is not there yet, everything is waiting.
        tasks: where rows that nobody has judged are written.
        seed: of which answer comes first.
    """

    answers = frozenset(("compare", "rate", "decide"))

    def __init__(self, labels: str, tasks: str = "to_label.jsonl", seed: int = 0):
        self.labels, self.tasks, self.seed = labels, tasks, seed

    @property
    def title(self) -> str:
        return "people"

    def identity(self) -> dict[str, Any]:
        # labels may grow or be corrected: what was read before is never taken for what the file says now
        path = Path(self.labels)
        return {"labels": str(path), "state": path.stat().st_mtime_ns if path.is_file() else 0}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        known = self._labels()
        missing: dict[str, dict[str, Any]] = {}
        for index, question in enumerate(questions):
            row, flipped = self.row(question)
            labeled = known.get(row["id"])
            value = [_value(question, given) for given in labeled] if labeled else []
            if not value:
                missing[row["id"]] = row
                yield index, Verdict(None, "nobody has judged it yet", pending=True)
                continue
            readable = [v for v in value if v is not None]
            mean = sum(readable) / len(readable) if readable else None
            if mean is not None and flipped:
                mean = 1 - mean
            yield index, Verdict(mean, f"{len(value)} labelers")
        if missing:
            self._write(list(missing.values()))

    def row(self, question: Question) -> tuple[dict[str, Any], bool]:
        """The row that people see, and whether its answers stand the other way round than the question's.

        Both orders of a pair are one row.
        """
        answers = list(question.answers)
        flipped = False
        if question.kind == "compare":
            ordered = sorted(answers)
            key = Question("compare", question.prompt, tuple(ordered), question.criterion, question.reference).key
            random.Random(f"{self.seed} {key}").shuffle(ordered)
            flipped = ordered != answers
            answers = ordered
        else:
            key = question.key
        row: dict[str, Any] = {"id": key, "prompt": question.prompt, "completions": answers}
        if question.kind == "decide":
            row |= {"criterion": question.about, "statement": question.criterion}
        if question.kind == "rate":
            row["rate"] = True
        if question.reference:
            row["reference"] = question.reference
        return row, flipped

    def _labels(self) -> dict[str, list[dict[str, Any]]]:
        if not Path(self.labels).is_file():
            return {}
        found: dict[str, list[dict[str, Any]]] = {}
        for row in read_rows(self.labels, "judge.labels", "id"):
            found.setdefault(str(row["id"]), []).append(row)
        return found

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """All rows that are waiting, beside those of earlier tasks."""
        path = Path(self.tasks)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = {}
            if path.is_file():
                before = {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
            before |= {row["id"]: row for row in rows}
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in before.values())
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be written: {error}", where="judge.tasks") from error


def _value(question: Question, row: dict[str, Any]) -> float | None:
    """What one labeler said of the row as it was shown."""
    try:
        if question.kind == "compare":
            first, second = row["ranks"]
            return 1.0 if first < second else 0.0 if first > second else 0.5
        if question.kind == "rate":
            rating = row["ratings"][0] if isinstance(row["ratings"], list) else row["ratings"]
            return float(rating) if 1 <= float(rating) <= 7 else None
        flags = row["flags"][0] if isinstance(row["flags"], list) else row["flags"]
        return float(bool(flags[question.about]))
    except (KeyError, IndexError, TypeError, ValueError):
        return None
