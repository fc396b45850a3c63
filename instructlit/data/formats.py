"""From row to record. One table of the forms a row may have, recognised by their fields; any other row is an error.

| form | fields |
| --- | --- |
| native | ours: prompt, completion; prompt, completions, ranks; prompt; text |
| messages | messages, the last one the answer (OpenAI) |
| preference | chosen, rejected, with or without prompt, as text or as messages (TRL) |
| transcript | chosen and rejected as "\\n\\nHuman: … \\n\\nAssistant: …" (HH); the prompt is what both share |
| sharegpt | conversations of {from, value}, with chosen and rejected for comparisons |
| alpaca | instruction, input, output (or chosen and rejected) |
| oasst | message trees: a comparison of the ranked replies, or the best reply, of every prompter message |
"""

from collections.abc import Callable
from typing import Any, Literal

from instructlit.data import conversations
from instructlit.data.fields import Fields
from instructlit.errors import UserError
from instructlit.types import Comparison, Demonstration, Prompt, PromptText, Text

Kind = Literal["demonstration", "comparison", "prompt", "text"]
Record = Demonstration | Comparison | Prompt | Text

# In the order they are tried: a row of an earlier form may have fields of a later one.
_TESTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "oasst": lambda row: (
        "message_tree_id" in row or (isinstance(row.get("prompt"), dict) and "replies" in row["prompt"])
    ),
    "sharegpt": lambda row: "conversations" in row,
    "messages": lambda row: "messages" in row,
    "alpaca": lambda row: "instruction" in row,
    "transcript": lambda row: (
        "prompt" not in row and conversations.is_transcript(row.get("chosen"), row.get("rejected"))
    ),
    "preference": lambda row: "chosen" in row and "rejected" in row,
    "native": lambda row: True,
}
FORMATS = tuple(_TESTS)


def detect_format(row: dict[str, Any], kind: Kind | None = None) -> str:
    """The form of a row, by its fields. If a comparison is asked for, `messages` next to a pair are ignored: they
    are the conversation with the better answer, as in UltraFeedback.
    """
    passed = "messages" if kind == "comparison" and "chosen" in row else None
    return next(name for name, fits in _TESTS.items() if name != passed and fits(row))


def detect_kind(row: dict[str, Any]) -> Kind:
    """The most likely kind of a row, if none was given: used by `instructlit data check` on bare files."""
    if "completions" in row or "chosen" in row or detect_format(row) == "oasst":
        return "comparison"
    if any(name in row for name in ("completion", "output", "messages", "conversations")):
        return "demonstration"
    return "text" if "text" in row and "prompt" not in row else "prompt"


def read_records(row: dict[str, Any], where: str, kind: Kind, form: str = "auto") -> tuple[str, list[Record]]:
    """The form of a row and its records: one, except for message trees, which hold any number.

    Raises:
        UserError: naming `where`, the field and what was expected.
    """
    if form != "auto" and form not in _TESTS:
        raise UserError(f"found {form!r}", where="format", expected=f"auto, {', '.join(FORMATS)}")
    found = detect_format(row, kind) if form == "auto" else form
    fields = Fields(row, where)
    if kind == "text":
        return "native", [Text(fields.text("text"))]
    if found == "oasst":
        return found, list(conversations.tree_records(fields, kind))
    return found, [_READERS[kind](fields, found)]


def _demonstration(fields: Fields, form: str) -> Demonstration:
    if form == "messages":
        prompt, completion = conversations.last_answer(
            fields, fields.messages(fields.value("messages", "messages"), "messages")
        )
    elif form == "sharegpt":
        turns = conversations.sharegpt_turns(fields)
        prompt, completion = conversations.last_answer(fields, turns, "conversations")
    elif form == "alpaca":
        prompt, completion = _alpaca_prompt(fields), fields.text("output")
    elif form in ("preference", "transcript"):
        fields.wrong("chosen", "the row is a comparison", "a demonstration: 'prompt' and 'completion'")
    else:
        if fields.row.get("label") is False:
            fields.wrong(
                "label", "found False: the completion is marked as bad", "demonstrations only: leave the row out"
            )
        prompt = fields.prompt()
        completion = fields.answer(fields.value("completion", "text"), "completion")
    return Demonstration(
        prompt, completion, fields.name("use_case"), fields.name("labeler"), fields.name("user"), fields.weight()
    )


def _comparison(fields: Fields, form: str) -> Comparison:
    if form == "native":
        return _native_comparison(fields)
    if form == "messages":
        fields.wrong(
            "messages", "the row is a single conversation", "a comparison: 'completions' with 'ranks', or a chosen pair"
        )
    if form == "alpaca":
        prompt, chosen, rejected = _alpaca_prompt(fields), fields.text("chosen"), fields.text("rejected")
    elif form == "sharegpt":
        prompt, chosen, rejected = conversations.sharegpt_pair(fields)
    elif form == "transcript":
        prompt, chosen, rejected = conversations.transcript_pair(fields)
    else:
        prompt, chosen, rejected = conversations.preference_pair(fields)
    return Comparison(
        prompt,
        [chosen, rejected],
        [1, 2],
        labeler=fields.name("labeler"),
        use_case=fields.name("use_case"),
        user=fields.name("user"),
        weight=fields.weight(),
    )


def _native_comparison(fields: Fields) -> Comparison:
    prompt = fields.prompt()
    completions = fields.texts("completions", at_least=2)
    k = len(completions)
    return Comparison(
        prompt,
        completions,
        fields.ranks(k),
        labeler=fields.name("labeler"),
        ratings=fields.ratings(k) if "ratings" in fields else None,
        flags=fields.flags(k) if "flags" in fields else None,
        policy=_policy(fields, k),
        use_case=fields.name("use_case"),
        user=fields.name("user"),
        weight=fields.weight(),
        ended=fields.ended(k) if "ended" in fields else None,
    )


def _policy(fields: Fields, k: int) -> list[str] | str | None:
    """The model that wrote each completion, or all of them; `models` is accepted as another name for the field."""
    name = "policy" if "policy" in fields else "models"
    value = fields.row.get(name)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) != k or not all(isinstance(v, str) for v in value):
        fields.wrong(name, "found another type or length", f"a text, or a list of {k} texts")
    return value


def _prompt(fields: Fields, form: str) -> Prompt:
    if form == "messages":
        turns = fields.messages(fields.value("messages", ""), "messages")
        prompt: PromptText = conversations.before_answer(fields, turns)
    elif form == "sharegpt":
        prompt = conversations.before_answer(fields, conversations.sharegpt_turns(fields), "conversations")
    elif form == "alpaca":
        prompt = _alpaca_prompt(fields)
    elif form == "transcript":
        prompt, _, _ = conversations.transcript_pair(fields)
    elif form == "preference":
        prompt, _, _ = conversations.preference_pair(fields)
    else:
        prompt = fields.prompt()
    return Prompt(prompt, fields.name("user"), fields.name("use_case"))


def _alpaca_prompt(fields: Fields) -> PromptText:
    if fields.row.get("history"):
        fields.wrong("history", "the row has earlier turns", "no 'history': write such rows as 'messages'")
    instruction = fields.text("instruction", blank=False)
    given = fields.text("input") if "input" in fields else ""
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    if not fields.row.get("system"):
        return prompt
    return [{"role": "system", "content": fields.text("system")}, {"role": "user", "content": prompt}]


_READERS: dict[str, Callable[[Fields, str], Record]] = {
    "demonstration": _demonstration,
    "comparison": _comparison,
    "prompt": _prompt,
}
