"""The shape of an answer: what is blank, what may be saved as a draft, what is still missing before it can be submitted.

| kind | answer |
| --- | --- |
| demonstration | `completion`, `notes` |
| comparison | `outputs`: for each of K a `rating` (1 to 7 or null) and `flags` (name: true, false or, if it may not apply, null); `ranks`: for each of K a column (1 is best) or null; `notes` |
| evaluation | `ranks`, `notes` |

Lists are in the order of the task's completions here, and in the order shown to the labeler in the browser; `shown` and
`from_shown` convert between the two.
"""  # noqa: E501 - a table

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructlit.labelling.questions import QUESTIONS
from instructlit.labelling.refusals import Invalid
from instructlit.rubric import BEST, WORST

MAX_TEXT = 200_000
_QUESTIONS = {question.name: question for question in QUESTIONS}


def blank(kind: str, count: int) -> dict[str, Any]:
    """An empty answer about `count` outputs."""
    if kind == "demonstration":
        return {"completion": "", "notes": ""}
    answer: dict[str, Any] = {"ranks": [None] * count, "notes": ""}
    if kind == "comparison":
        answer["outputs"] = [{"rating": None, "flags": {}} for _ in range(count)]
    return answer


def checked(kind: str, count: int, raw: Any) -> dict[str, Any]:
    """A draft ready to be stored: exactly the fields of its kind, each of the right type.

    Raises:
        Invalid: otherwise, naming the field.
    """
    fields = set(blank(kind, count))
    if not isinstance(raw, dict) or set(raw) != fields:
        raise Invalid("the answer has the wrong fields for its kind of task", expected=", ".join(sorted(fields)))
    answer: dict[str, Any] = {"notes": text(raw["notes"], "notes")}
    if "completion" in fields:
        answer["completion"] = text(raw["completion"], "completion")
    if "ranks" in fields:
        answer["ranks"] = _list(raw["ranks"], count, "ranks", lambda r, at: _whole(r, 1, count, at))
    if "outputs" in fields:
        answer["outputs"] = _list(raw["outputs"], count, "outputs", _output)
    return answer


def missing(kind: str, answer: dict[str, Any]) -> list[str]:
    """What has to be filled in before the answer can be submitted; outputs are named by their places in the list."""
    if kind == "demonstration":
        return [] if answer["completion"].strip() else ["Write an answer."]
    outputs = answer.get("outputs", ())
    open_places = {
        "No rating yet": [output["rating"] is None for output in outputs],
        "Unanswered questions": [bool(open_questions(output)) for output in outputs],
        "Not ranked yet": [rank is None for rank in answer["ranks"]],
    }
    problems = []
    for what, is_open in open_places.items():
        if any(is_open):
            problems.append(f"{what}: {', '.join(letter(place) for place, each in enumerate(is_open) if each)}.")
    return problems


def open_questions(output: Mapping[str, Any]) -> list[str]:
    """The names of the yes/no questions about an output that are not answered yet."""
    return [name for name in _QUESTIONS if name not in output["flags"]]


def shown(answer: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The answer with its lists in the order that the labeler sees."""
    return {key: [value[i] for i in order] if isinstance(value, list) else value for key, value in answer.items()}


def from_shown(answer: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The inverse of `shown`."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return shown(answer, inverse)


def dense(ranks: Sequence[int]) -> list[int]:
    """Columns as ranks: an empty column between two outputs has no meaning, so 1, 3, 3 is 1, 2, 2."""
    places = {column: place for place, column in enumerate(sorted(set(ranks)), 1)}
    return [places[column] for column in ranks]


def letter(place: int) -> str:
    """The name of an output on the page: A, B, C ..."""
    return chr(ord("A") + place)


def text(value: Any, field: str, limit: int = MAX_TEXT) -> str:
    """A text that both databases can store.

    Raises:
        Invalid: if it is not a text, too long, or has invalid characters.
    """
    if not isinstance(value, str):
        raise Invalid("found another type", where=field, expected="text")
    if len(value) > limit:
        raise Invalid(f"the text has {len(value)} characters", where=field, expected=f"at most {limit}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Invalid(
            "the text contains a NUL or half of a surrogate pair", where=field, expected="valid Unicode characters"
        )
    return value


def _output(raw: Any, field: str) -> dict[str, Any]:
    if not isinstance(raw, dict) or set(raw) != {"rating", "flags"} or not isinstance(raw["flags"], dict):
        raise Invalid("found another type or other fields", where=field, expected="an object with rating and flags")
    for name, value in raw["flags"].items():
        question = _QUESTIONS.get(name)
        if question is None or not (isinstance(value, bool) or (value is None and question.may_not_apply)):
            raise Invalid(
                "found other flags or values", where=f"{field}.flags", expected="true or false for known questions"
            )
    return {"rating": _whole(raw["rating"], WORST, BEST, f"{field}.rating"), "flags": dict(raw["flags"])}


def _list(raw: Any, count: int, field: str, check: Callable[[Any, str], Any]) -> list[Any]:
    if not isinstance(raw, list) or len(raw) != count:
        raise Invalid("found another type or length", where=field, expected=f"a list of {count}")
    return [check(value, f"{field}[{place}]") for place, value in enumerate(raw)]


def _whole(value: Any, low: int, high: int, field: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        return value
    raise Invalid("found another value", where=field, expected=f"a whole number from {low} to {high}, or null")
