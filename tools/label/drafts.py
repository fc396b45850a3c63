"""From the fields of a page to an answer. Fields are named by an output's shown position, never by its index."""

from typing import Any

from starlette.datastructures import FormData

from instructlit.labelling.answers import from_shown, shown
from instructlit.labelling.questions import QUESTIONS
from instructlit.labelling.refusals import Invalid
from instructlit.labelling.schema import Assignment
from instructlit.tools.label.site import field_of

_FLAG_WORDS = {"yes": True, "no": False, "na": None}


def answer_from(form: FormData, assignment: Assignment) -> dict[str, Any]:
    """The assignment's answer updated from the form; fields that the page does not have stay unchanged.

    Raises:
        Invalid: if a field has a value that its control cannot give.
    """
    answer = shown(assignment.answer, assignment.order)
    for name in ("completion", "notes"):
        if name in answer and name in form:
            answer[name] = field_of(form, name).replace("\r\n", "\n")  # what a textarea sends for a line break
    if "output" in form and "outputs" in answer:
        place = number(form, "output") - 1
        if not 0 <= place < len(answer["outputs"]):
            raise Invalid("there is no such output", where="output")
        answer["outputs"] = [_output(form) if i == place else each for i, each in enumerate(answer["outputs"])]
    if "verdict" in form and "ranks" in answer:
        answer["ranks"] = _verdict(field_of(form, "verdict"))
    elif "ranks" in answer:
        answer["ranks"] = [
            number(form, f"rank_{i}", None) if f"rank_{i}" in form else rank for i, rank in enumerate(answer["ranks"])
        ]
    return from_shown(answer, assignment.order)


def number(form: FormData, name: str, default: Any = 0) -> Any:
    """A whole number of a form; `default` for an empty field.

    Raises:
        Invalid: if it is not a number.
    """
    given = field_of(form, name).strip()
    if not given:
        return default
    if not given.isascii() or not given.isdecimal() or len(given) > 9:
        raise Invalid("found another value", where=name, expected="a whole number")
    return int(given)


def seconds(form: FormData) -> float:
    """Time worked, as the page measured it; 0 if it is not plausible."""
    try:
        worked = float(field_of(form, "seconds", "0") or 0)
    except ValueError:
        return 0.0
    return worked if 0 <= worked < 24 * 3600 else 0.0


def _output(form: FormData) -> dict[str, Any]:
    flags = {}
    for question in QUESTIONS:
        said = field_of(form, f"flag_{question.name}")
        if said and said not in _FLAG_WORDS:
            raise Invalid("found another value", where=question.name, expected="yes or no")
        if said:
            flags[question.name] = _FLAG_WORDS[said]
    return {"rating": number(form, "rating", None), "flags": flags}


def _verdict(said: str) -> list[int | None]:
    verdicts: dict[str, list[int | None]] = {"": [None, None], "a": [1, 2], "b": [2, 1], "tie": [1, 1]}
    if said not in verdicts:
        raise Invalid("found another value", where="verdict", expected="a, b or tie")
    return verdicts[said]
