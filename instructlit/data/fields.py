"""The fields of one row, read with checks. Every error names the file, the line, the field and what was expected."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from instructlit.errors import UserError, nearest
from instructlit.rubric import BEST, WORST

if TYPE_CHECKING:  # the labelling server uses this module and runs without torch
    from instructlit.types import Message, PromptText

ROLES = ("system", "user", "assistant")


class Fields:
    """A row and its location, for error messages."""

    def __init__(self, row: dict[str, Any], where: str):
        self.row, self.where = row, where

    def __contains__(self, name: str) -> bool:
        return name in self.row

    def wrong(self, field: str, what: str, expected: str) -> NoReturn:
        """Raises the error about `field`."""
        raise UserError(what, where=f"{self.where}: {field}", expected=expected)

    def value(self, name: str, expected: str) -> Any:
        """The raw value of a field that must be there."""
        if name not in self.row:
            close = nearest(name, self.row)
            has = f"did you mean {close!r}?" if close else f"it has {', '.join(map(repr, self.row)) or 'no fields'}"
            self.wrong(name, f"the field is missing; {has}", expected)
        return self.row[name]

    def text(self, name: str, blank: bool = True) -> str:
        """A text; with `blank=False`, one that is not blank."""
        return self.as_text(self.value(name, "text"), name, blank)

    def as_text(self, value: Any, name: str, blank: bool = True) -> str:
        """`value` as the text of field `name`."""
        if not isinstance(value, str):
            self.wrong(name, f"found {_kind(value)}", "text")
        if not blank and not value.strip():
            self.wrong(name, "the text is blank", "text that is not blank")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            self.wrong(name, f"character {error.start + 1} is half of a surrogate pair", "complete Unicode characters")
        return value

    def name(self, name: str) -> str | None:
        """An optional label such as a labeler or user: text, or a whole number as an id."""
        value = self.row.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            self.wrong(name, f"found {_kind(value)}", "text or a whole number")
        return None if value is None else self.as_text(value, name)

    def weight(self) -> float:
        """The optional `weight`, a number above 0; 1 if it is not given."""
        value = self.row.get("weight")
        if value is None:
            return 1.0
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:  # integers in JSON are unbounded
            self.wrong("weight", f"found {_kind(value)}", "a number above 0; leave out rows with weight 0")
        return float(value)

    def prompt(self, name: str = "prompt") -> PromptText:
        """A prompt: text, or messages that end before the assistant's turn."""
        value = self.value(name, "text, or a list of messages")
        if isinstance(value, list):
            return self.conversation(value, name)
        if not isinstance(value, str):
            self.wrong(name, f"found {_kind(value)}", "text, or a list of messages")
        return self.as_text(value, name, blank=False)

    def conversation(self, value: Any, name: str) -> list[Message]:
        """Messages that end before the assistant's turn."""
        messages = self.messages(value, name)
        if messages[-1]["role"] == "assistant":
            self.wrong(name, "the last message is from the assistant", "messages that end before the assistant's turn")
        return self.spoken(messages, name)

    def spoken(self, messages: list[Message], name: str) -> list[Message]:
        """The messages of a prompt, which must not all be blank."""
        if not any(message["content"].strip() for message in messages):
            self.wrong(name, "every message of the prompt is blank", "a message that is not blank")
        return messages

    def messages(
        self, value: Any, name: str, role: str = "role", content: str = "content", roles=None
    ) -> list[Message]:
        """A list of `{role, content}`, with the keys and role names of the format at hand."""
        if not isinstance(value, list) or not value:
            self.wrong(name, f"found {_kind(value)}", f"a list of messages, each with {role!r} and {content!r}")
        known = roles or {r: r for r in ROLES}
        messages: list[Message] = []
        for i, entry in enumerate(value):
            place = f"{name}[{i}]"
            if not isinstance(entry, dict) or role not in entry or content not in entry:
                found = f"keys {', '.join(map(repr, entry))}" if isinstance(entry, dict) else _kind(entry)
                self.wrong(place, f"found {found}", f"a message with {role!r} and {content!r}")
            for call in ("tool_calls", "function_call"):
                if entry.get(call):
                    expected = (
                        f"a message with all its text in {content!r}, tool calls included, as the model writes them"
                    )
                    self.wrong(f"{place}.{call}", f"found {_kind(entry[call])}", expected)
            who = self.role(entry[role], f"{place}.{role}", known)
            messages.append({"role": who, "content": self.as_text(entry[content], f"{place}.{content}")})
        return messages

    def role(self, value: Any, name: str, known: dict[str, str]) -> str:
        """Our name for a role; `known` maps the names of a format."""
        if not isinstance(value, str) or value not in known:
            self.wrong(name, f"found {value!r}", f"one of {', '.join(known)}")
        return known[value]

    def answer(self, value: Any, name: str) -> str:
        """A completion: text, or a list of exactly one assistant message."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            (message,) = self.messages(value, name)
            if message["role"] != "assistant":
                self.wrong(name, f"found a message from the {message['role']}", "a message from the assistant")
            return message["content"]
        return self.as_text(value, name)

    def texts(self, name: str, at_least: int) -> list[str]:
        """A list of at least `at_least` texts."""
        value = self.value(name, f"a list of at least {at_least} texts")
        if not isinstance(value, list):
            self.wrong(name, f"found {_kind(value)}", f"a list of at least {at_least} texts")
        if len(value) < at_least:
            self.wrong(name, f"found {len(value)}", f"at least {at_least} completions to compare")
        return [self.answer(entry, f"{name}[{i}]") for i, entry in enumerate(value)]

    def ranks(self, length: int) -> list[int]:
        """The rank of each of `length` completions; the best has 1."""
        ranks = self._integers("ranks", length, 1, length, "1 is best, equal is a tie")
        if min(ranks) != 1:
            self.wrong("ranks", f"the best rank is {min(ranks)}", "ranks that start at 1")
        return ranks

    def ratings(self, length: int) -> list[int]:
        """A rating of each of `length` completions."""
        return self._integers("ratings", length, WORST, BEST, "ratings")

    def _integers(self, name: str, length: int, low: int, high: int, meaning: str) -> list[int]:
        """A list of `length` whole numbers from `low` to `high`."""
        expected = f"{length} whole numbers from {low} to {high}: {meaning}"
        value = self.value(name, expected)
        if not isinstance(value, list):
            self.wrong(name, f"found {_kind(value)}", expected)
        if len(value) != length:
            self.wrong(name, f"found {len(value)} for {length} completions", expected)
        for i, number in enumerate(value):
            if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
                self.wrong(f"{name}[{i}]", f"found {_kind(number)}", expected)
        return list(value)

    def ended(self, length: int) -> list[bool]:
        """Whether each of `length` completions ended."""
        expected = f"{length} values, each true or false"
        value = self.value("ended", expected)
        if not isinstance(value, list):
            self.wrong("ended", f"found {_kind(value)}", expected)
        if len(value) != length or not all(isinstance(entry, bool) for entry in value):
            self.wrong("ended", f"found {value!r:.60}", expected)
        return list(value)

    def objects(self, value: Any, name: str) -> list[dict[str, Any]]:
        """`value` as a list of objects."""
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.wrong(name, f"found {_kind(value)}", "a list of objects")
        return value

    def rank(self, value: Any, name: str) -> int | None:
        """An optional whole number in a tree; pandas writes it as a float if another message has none."""
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value % 1 != 0:  # the remainder of an infinite value is NaN
            self.wrong(name, f"found {_kind(value)}", "a whole number")
        return int(value)

    def flags(self, length: int) -> list[dict[str, bool]]:
        """The yes/no flags of each of `length` completions."""
        expected = f"a list of {length} objects of true or false values"
        value = self.value("flags", expected)
        if not isinstance(value, list) or len(value) != length:
            self.wrong("flags", f"found {_kind(value)}", expected)
        for i, entry in enumerate(value):
            if not isinstance(entry, dict) or not all(isinstance(flag, bool) for flag in entry.values()):
                self.wrong(f"flags[{i}]", f"found {_kind(entry)}", expected)
        return value


def _kind(value: Any) -> str:
    """A short description of a value, for a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"the number {value}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
