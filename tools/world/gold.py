"""The embedded world's gold scorer as a judge of `instructlit evaluate`."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from instructlit.evaluation.judging import Judge, Question
from instructlit.evaluation.judging import Verdict as Reply
from instructlit.tools.world.folder import read_world
from instructlit.world import Verdict, World

CRITERIA = ("attempted", "constraints", "grounded", "truthful", "rude")


class GoldJudge(Judge):
    """Knows the truth of the embedded world: scores or rates an answer, compares two, or decides on its criteria.

    With a score it returns its whole verdict as JSON; see `instructlit.world.Verdict`.

    Args:
        data: the world's data folder.
    """

    def __init__(self, data: str = "data"):
        self.data = Path(data)

    @cached_property
    def world(self) -> World:
        """The world whose data is in the folder."""
        return read_world(self.data)

    @property
    def title(self) -> str:
        return "the gold scorer"

    def identity(self) -> dict[str, Any]:
        return {"world": self.world.seed}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        for index, question in enumerate(questions):
            found = [self.world.judge(question.prompt_text, answer) for answer in question.answers]
            yield index, _reply(question, found)


def _reply(question: Question, found: Sequence[Verdict]) -> Reply:
    if question.kind == "compare":
        first, second = (verdict.score for verdict in found)
        return Reply(1.0 if first > second else 0.0 if first < second else 0.5, f"{first:g}, {second:g}")
    if question.kind == "rate":
        return Reply(float(found[0].rating), f"score {found[0].score:g}")
    if question.kind == "decide":
        held = getattr(found[0], question.about) if question.about in CRITERIA else None
        return Reply(None if held is None else float(held), "" if held is not None else "this does not apply")
    told = {"rating": found[0].rating} | {name: getattr(found[0], name) for name in CRITERIA}
    return Reply(found[0].score, json.dumps(told))
