"""Multiple-choice questions: the choice with the highest mean log-probability per token is the model's answer."""

from collections.abc import Sequence
from typing import Any

from instructlit.data.sources import Place
from instructlit.errors import UserError
from instructlit.evaluation.datasets import needed, read_rows
from instructlit.evaluation.measures import PERCENT, Measure, Outcome, Study, measured
from instructlit.evaluation.requests import Request, Weigh, Weights
from instructlit.evaluation.task import Task


class MultipleChoice(Task):
    """Share of right choices, by the lowest mean log-loss per token, without any instruction.

    Args:
        data: rows with `context`, `choices` (texts), `answer` (the index of the right one, from 0) and, where the file
            holds several tasks, `task`.
        limit: use only this many rows, the first ones.
    """

    def __init__(self, data: Place | None = None, limit: int | None = None):
        self.data, self.limit = data, limit
        self._rows: list[dict[str, Any]] = []

    def requests(self) -> Sequence[Request]:
        data = needed(self.data, "choices.data", "file of questions is")
        self._rows = read_rows(data, "choices.data", "context", "choices", "answer", limit=self.limit)
        for number, row in enumerate(self._rows, start=1):
            if not isinstance(row["choices"], list) or row["answer"] not in range(len(row["choices"])):
                raise UserError(
                    f"row {number} has the answer {row['answer']!r}",
                    where="choices.data",
                    expected="choices, a list of texts, and in answer the index of the right one, from 0",
                )
        return [Weigh(r["context"], tuple(f" {c}" for c in r["choices"]), plain=False) for r in self._rows]

    def measure(self, study: Study) -> Outcome:
        outcome = Outcome()
        names = [str(row.get("task") or "choices") for row in self._rows]
        for name in dict.fromkeys(names):
            places = [i for i, own in enumerate(names) if own == name]
            right = {m: [self._right(i, study.replies[m][i]) for i in places] for m in study.models}
            column = Measure(
                f"choices/{name}",
                f"task: {name}",
                "Share of right choices, by the lowest mean log-loss per token, without any instruction.",
                PERCENT,
            )
            outcome.measures.append(measured(study, column, right, share=True))
        return outcome

    def _right(self, row: int, reply: object) -> float | None:
        if not isinstance(reply, Weights):
            return None
        return float(reply.means.index(max(reply.means)) == self._rows[row]["answer"])
