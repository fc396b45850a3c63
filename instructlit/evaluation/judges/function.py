"""A user's function as a judge."""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

from instructlit.errors import UserError
from instructlit.evaluation.judging import Judge, Question, Verdict


class FunctionJudge(Judge):
    """Calls `function(question)`, which returns the value that `Question` describes, or None where it has no verdict.

    Verdicts are kept like any other judge's: change `version` with the function.

    Args:
        function: its import path, `package.module.name`.
        version: anything that changes when the function does.
    """

    def __init__(self, function: str, version: str = ""):
        self.path, self.version = function, version
        self._function = _imported(function)

    @property
    def title(self) -> str:
        return self.path

    def identity(self) -> dict[str, Any]:
        return {"function": self.path, "version": self.version}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for index, question in enumerate(questions):
            value = self._function(question)
            number = isinstance(value, Real) and math.isfinite(value)
            yield index, Verdict(float(value) if number else None, "" if value is None else repr(value)[:200])


def _imported(path: str) -> Callable[[Question], Any]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be imported: {error}", where="judge.function", expected="package.module.function"
        ) from error
    if not callable(function):
        raise UserError(
            f"{path} is not a function", where="judge.function", expected="a function that takes one question"
        )
    return function
