"""Conversations in the shapes that other projects write, split into prompt and answer."""

import re
from collections.abc import Iterator
from typing import Any

from instructlit.data.fields import Fields
from instructlit.types import Comparison, Demonstration, Message, Prompt, PromptText

_SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ANSWER = "\n\nAssistant:"
LATER_TURN = "\n\nHuman:"
"""How a user turn begins in a transcript; inside an answer it means that the dialogue continues."""


def last_answer(fields: Fields, turns: list[Message], name: str = "messages") -> tuple[list[Message], str]:
    """The conversation before the last turn, and that turn, which must be the assistant's."""
    if turns[-1]["role"] != "assistant":
        fields.wrong(
            name, f"the last message is from the {turns[-1]['role']}", "a conversation that ends with the assistant"
        )
    if len(turns) < 2:
        fields.wrong(name, "found only the answer", "at least one message before the answer")
    return fields.spoken(turns[:-1], name), turns[-1]["content"]


def before_answer(fields: Fields, turns: list[Message], name: str = "messages") -> list[Message]:
    """The conversation without a final answer, if it has one."""
    return fields.spoken(turns[:-1] if turns[-1]["role"] == "assistant" and len(turns) > 1 else turns, name)


def sharegpt_turns(fields: Fields) -> list[Message]:
    """`conversations` of `{from, value}` as messages; a separate `system` text comes first."""
    value = fields.value("conversations", "a list of messages, each with 'from' and 'value'")
    turns = fields.messages(value, "conversations", "from", "value", _SHAREGPT_ROLES)
    if fields.row.get("system"):
        turns.insert(0, {"role": "system", "content": fields.text("system")})
    return turns


def sharegpt_pair(fields: Fields) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected of a ShareGPT row, the two answers being one `{from, value}` each."""
    turns = sharegpt_turns(fields)
    if turns[-1]["role"] == "assistant":
        fields.wrong("conversations", "the last message is from the assistant", "messages that end before the answer")
    answers = []
    for name in ("chosen", "rejected"):
        value = fields.value(name, "a message with 'from' and 'value'")
        if isinstance(value, str):
            answers.append(fields.as_text(value, name))
            continue
        (message,) = fields.messages([value], name, "from", "value", _SHAREGPT_ROLES)
        if message["role"] != "assistant":
            fields.wrong(name, f"found a message from the {message['role']}", "a message from the assistant")
        answers.append(message["content"])
    return fields.spoken(turns, "conversations"), answers[0], answers[1]


def is_transcript(chosen: Any, rejected: Any) -> bool:
    """Whether two texts are dialogues as Anthropic's HH data writes them."""
    return all(isinstance(text, str) and text.startswith("\n\nHuman:") for text in (chosen, rejected))


def transcript_pair(fields: Fields) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected of an HH row: the prompt is what both share, up to the assistant's last turn."""
    chosen, rejected = fields.text("chosen"), fields.text("rejected")
    cut = _shared(chosen, rejected).rfind(_ANSWER)
    if cut < 0:
        fields.wrong(
            "chosen", "it has no assistant turn in common with 'rejected'", f"the same dialogue up to {_ANSWER!r}"
        )
    start = cut + len(_ANSWER)
    prompt = fields.spoken(_dialogue(chosen[:cut]), "chosen")
    return prompt, chosen[start:].removeprefix(" "), rejected[start:].removeprefix(" ")


def _shared(first: str, second: str) -> str:
    """The text that both begin with."""
    length = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:length]


def _dialogue(text: str) -> list[Message]:
    """Messages of a `\\n\\nHuman: … \\n\\nAssistant: …` text; the one space after each colon is layout."""
    _, *parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def preference_pair(fields: Fields) -> tuple[PromptText, str, str]:
    """Prompt, chosen and rejected in TRL's forms: with a prompt, or with the conversation that both answers begin
    with.
    """
    chosen, rejected = (fields.value(name, "text, or a list of messages") for name in ("chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        if "prompt" in fields and len(chosen) == 1 and len(rejected) == 1:
            return fields.prompt(), fields.answer(chosen, "chosen"), fields.answer(rejected, "rejected")
        return _shared_conversation(fields, chosen, rejected)
    if "prompt" not in fields:
        fields.wrong("prompt", "the field is missing", "a prompt, or 'chosen' and 'rejected' as complete conversations")
    return fields.prompt(), fields.answer(chosen, "chosen"), fields.answer(rejected, "rejected")


def _shared_conversation(fields: Fields, chosen: list[Any], rejected: list[Any]) -> tuple[list[Message], str, str]:
    turns = {name: fields.messages(value, name) for name, value in (("chosen", chosen), ("rejected", rejected))}
    prompts, answers = [], []
    for name, messages in turns.items():
        prompt, answer = last_answer(fields, messages, name)
        prompts.append(prompt)
        answers.append(answer)
    if prompts[0] != prompts[1]:
        fields.wrong(
            "rejected", "its conversation differs from 'chosen' before the last turn", "the same prompt for both"
        )
    prompt = fields.conversation(prompts[0], "chosen")
    given = fields.row.get("prompt")
    if given is not None and given not in (prompt, prompt[-1]["content"], prompt[0]["content"]):
        fields.wrong("prompt", "it is not the conversation that 'chosen' begins with", "the same prompt in both places")
    return prompt, answers[0], answers[1]


def tree_records(fields: Fields, kind: str) -> Iterator[Demonstration | Comparison | Prompt]:
    """The records in an OpenAssistant tree, one for each prompter message that has what `kind` needs."""
    root = fields.value("prompt", "the root message of a tree")
    if not isinstance(root, dict):
        fields.wrong(
            "prompt", "found no message", "the root message of a tree: an object with 'text', 'role', 'replies'"
        )
    yield from _walk(fields, kind, root, [], "prompt")


def _walk(fields: Fields, kind: str, node: dict[str, Any], before: list[Message], place: str) -> Iterator[Any]:
    role = fields.role(node.get("role"), f"{place}.role", _TREE_ROLES)
    turns = [*before, {"role": role, "content": fields.as_text(node.get("text"), f"{place}.text", blank=False)}]
    replies = fields.objects(node.get("replies") or [], f"{place}.replies")
    replies = [reply for reply in replies if not reply.get("deleted")]
    if role == "user":
        yield from _node_records(fields, kind, turns, replies, place)
    for i, reply in enumerate(replies):
        yield from _walk(fields, kind, reply, turns, f"{place}.replies[{i}]")


def _node_records(
    fields: Fields, kind: str, turns: list[Message], replies: list[dict[str, Any]], place: str
) -> Iterator[Any]:
    ranks = [fields.rank(reply.get("rank"), f"{place}.replies[{i}].rank") for i, reply in enumerate(replies)]
    ranked = [(rank, reply) for rank, reply in zip(ranks, replies, strict=True) if rank is not None]
    ranked.sort(key=lambda pair: pair[0])
    best_first = [reply for _, reply in ranked] or replies
    texts = [fields.as_text(reply.get("text"), f"{place}.replies.text") for reply in best_first]
    if kind == "prompt":
        yield Prompt(turns)
    elif kind == "comparison" and len(ranked) >= 2:
        order = sorted({rank for rank, _ in ranked})
        yield Comparison(turns, texts, [order.index(rank) + 1 for rank, _ in ranked])
    elif kind == "demonstration" and texts:
        yield Demonstration(turns, texts[0])
