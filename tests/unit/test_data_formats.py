"""Every form a row may have, as records; and every wrong row as one message with file, line, field and expectation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from instructlit.data.formats import FORMATS, detect_format, detect_kind, read_records
from instructlit.errors import UserError
from instructlit.types import Comparison, Demonstration, Prompt, Text

USER = {"role": "user", "content": "Hi"}
BLANK = {"role": "user", "content": " \n"}
ANSWER = {"role": "assistant", "content": "Hello"}
WORSE = {"role": "assistant", "content": "What"}


def read(row: dict[str, Any], kind: Any, form: str = "auto") -> Any:
    (record,) = read_records(row, "f.jsonl:3", kind, form)[1]
    return record


def test_our_own_records() -> None:
    row = {"prompt": "p", "completion": "c", "use_case": "chat", "labeler": 7, "user": "u", "more": 1}
    assert read(row, "demonstration") == Demonstration("p", "c", "chat", "7", "u")
    assert read(row, "prompt") == Prompt("p", "u", "chat")
    assert read({"text": "t"}, "text") == Text("t")
    row = {
        "prompt": [USER],
        "completions": ["a", "b", "b"],
        "ranks": [2, 1, 1],
        "labeler": "l",
        "ratings": [1, 7, 7],
        "flags": [{"rude": True}, {}, {}],
        "policy": ["x", "y", "z"],
    }
    assert read(row, "comparison") == Comparison(
        [USER], ["a", "b", "b"], [2, 1, 1], "l", [1, 7, 7], [{"rude": True}, {}, {}], ["x", "y", "z"]
    )


def test_models_is_another_name_for_policy() -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "models": ["m", "n"]}
    assert read(row, "comparison").policy == ["m", "n"]


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "messages", Demonstration([USER], "Hello")),
        ({"prompt": [USER], "completion": [ANSWER]}, "native", Demonstration([USER], "Hello")),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            "sharegpt",
            Demonstration([USER], "Hello"),
        ),
        (
            {
                "system": "S",
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            },
            "sharegpt",
            Demonstration([{"role": "system", "content": "S"}, USER], "Hello"),
        ),
        ({"instruction": "I", "input": "", "output": "O"}, "alpaca", Demonstration("I", "O")),
        ({"instruction": "I", "input": "X", "output": "O"}, "alpaca", Demonstration("I\n\nX", "O")),
        (
            {"instruction": "Hi", "output": "O", "system": "S"},
            "alpaca",
            Demonstration([{"role": "system", "content": "S"}, USER], "O"),
        ),
    ],
)
def test_demonstrations(row: dict[str, Any], form: str, expected: Demonstration) -> None:
    assert detect_format(row) == form
    assert detect_kind(row) == "demonstration"
    assert read(row, "demonstration") == expected


HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:"
HH_PROMPT = [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye"}]


@pytest.mark.parametrize(
    ("row", "form", "prompt"),
    [
        ({"prompt": "P", "chosen": "Hello", "rejected": "What"}, "preference", "P"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, "preference", [USER]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "preference", [USER]),
        ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "preference", [USER]),
        ({"chosen": HH + " Hello", "rejected": HH + " What"}, "transcript", HH_PROMPT),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello"},
                "rejected": {"from": "gpt", "value": "What"},
            },
            "sharegpt",
            [USER],
        ),
        ({"instruction": "I", "input": "X", "chosen": "Hello", "rejected": "What"}, "alpaca", "I\n\nX"),
    ],
)
def test_pairs(row: dict[str, Any], form: str, prompt: Any) -> None:
    assert detect_format(row) == form
    assert detect_kind(row) == "comparison"
    assert read(row, "comparison") == Comparison(prompt, ["Hello", "What"], [1, 2])
    assert read(row, "prompt") == Prompt(prompt)


def test_a_pair_may_have_the_conversation_of_its_better_answer_beside_it() -> None:
    both = {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "messages": [USER, ANSWER]}
    assert detect_kind(both) == "comparison"
    assert read(both, "comparison") == Comparison([USER], ["Hello", "What"], [1, 2])
    assert read(both, "demonstration") == Demonstration([USER], "Hello")


def test_transcript_answers_may_begin_alike() -> None:
    """The shared text reaches into the answers; the prompt still ends at the last turn of the assistant."""
    record = read({"chosen": HH + " Hello there", "rejected": HH + " Help"}, "comparison")
    assert record.completions == ["Hello there", "Help"]
    assert record.prompt == HH_PROMPT


def test_transcript_is_left_as_text_where_that_is_asked_for() -> None:
    row = {"prompt": HH, "chosen": " Hello", "rejected": " What"}
    assert read(row, "comparison", "preference") == Comparison(HH, [" Hello", " What"], [1, 2])


def test_prompts_of_conversations_leave_the_answer_out() -> None:
    assert read({"messages": [USER, ANSWER]}, "prompt") == Prompt([USER])
    assert read({"messages": [USER]}, "prompt") == Prompt([USER])
    assert read({"prompt": "p", "completion": "c"}, "prompt") == Prompt("p")


def tree_node(text: str, role: Any, replies: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "replies": replies or [], **more}


TREE = {
    "message_tree_id": "t",
    "prompt": tree_node(
        "Hi",
        "prompter",
        [
            tree_node("What", "assistant", rank=1),
            tree_node("Hello", "assistant", [tree_node("More", "prompter", [tree_node("End", "assistant")])], rank=0),
            tree_node("Spam", "assistant", rank=2, deleted=True),
        ],
    ),
}


def test_trees() -> None:
    """A comparison where replies are ranked, the best reply of every prompter's message, every such message."""
    _, comparisons = read_records(TREE, "f", "comparison")
    assert comparisons == [Comparison([USER], ["Hello", "What"], [1, 2])]
    further = [USER, ANSWER, {"role": "user", "content": "More"}]
    _, demonstrations = read_records(TREE, "f", "demonstration")
    assert demonstrations == [Demonstration([USER], "Hello"), Demonstration(further, "End")]
    _, prompts = read_records(TREE, "f", "prompt")
    assert prompts == [Prompt([USER]), Prompt(further)]


def test_ranks_of_trees_that_pandas_made_floats() -> None:
    replies = [tree_node("What", "assistant", rank=1.0), tree_node("Hello", "assistant", rank=0.0)]
    tree = {"message_tree_id": "t", "prompt": tree_node("Hi", "prompter", replies)}
    assert read(tree, "comparison") == Comparison([USER], ["Hello", "What"], [1, 2])
    assert read(tree, "demonstration") == Demonstration([USER], "Hello")


def native(**changes: Any) -> dict[str, Any]:
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]} | changes
    return {name: value for name, value in row.items() if value is not ...}


WRONG: list[tuple[str, str, dict[str, Any], str, str]] = [
    # what it is, kind, row, field named, words of the message
    ("list for text", "demonstration", {"prompt": "p", "completion": ["c"]}, "completion", "found a list of 1"),
    ("number for text", "demonstration", {"prompt": 3, "completion": "c"}, "prompt", "found the number 3"),
    ("null", "demonstration", {"prompt": "p", "completion": None}, "completion", "found null"),
    ("missing", "demonstration", {"prompt": "p"}, "completion", "missing; it has 'prompt'"),
    ("misspelt", "demonstration", {"prompt": "p", "compeltion": "c"}, "completion", "did you mean 'compeltion'"),
    ("blank prompt", "demonstration", {"prompt": "  ", "completion": "c"}, "prompt", "blank"),
    ("blank messages", "prompt", {"prompt": [BLANK]}, "prompt", "every message of the prompt is blank"),
    ("blank before the answer", "demonstration", {"messages": [BLANK, ANSWER]}, "messages", "is blank"),
    ("blank messages as prompt", "prompt", {"messages": [BLANK, ANSWER]}, "messages", "is blank"),
    (
        "blank turns of ShareGPT",
        "comparison",
        {"conversations": [{"from": "human", "value": ""}], "chosen": "a", "rejected": "b"},
        "conversations",
        "is blank",
    ),
    (
        "blank transcript",
        "comparison",
        {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"},
        "chosen",
        "is blank",
    ),
    ("half a surrogate", "demonstration", {"prompt": "a\ud800", "completion": "c"}, "prompt", "surrogate"),
    ("half a surrogate as user", "prompt", {"prompt": "p", "user": "\ud800"}, "user", "surrogate"),
    ("comparison for demonstration", "demonstration", {"chosen": "a", "rejected": "b"}, "chosen", "is a comparison"),
    ("no message", "demonstration", {"messages": []}, "messages", "found a list of 0"),
    ("unknown role", "demonstration", {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "'bot'"),
    ("role as list", "demonstration", {"messages": [{"role": ["u"], "content": ""}]}, "messages[0].role", "['u']"),
    ("no content", "demonstration", {"messages": [{"role": "user"}]}, "messages[0]", "found keys 'role'"),
    (
        "content in parts",
        "demonstration",
        {"messages": [{"role": "user", "content": [1]}]},
        "messages[0].content",
        "list",
    ),
    (
        "call of a tool",
        "demonstration",
        {"messages": [USER, {**ANSWER, "content": "", "tool_calls": [{"id": "1"}]}, USER, ANSWER]},
        "messages[1].tool_calls",
        "found a list of 1",
    ),
    (
        "unwanted completion",
        "demonstration",
        {"prompt": "p", "completion": "c", "label": False},
        "label",
        "marked as bad",
    ),
    ("no answer", "demonstration", {"messages": [USER]}, "messages", "from the user"),
    ("only the answer", "demonstration", {"messages": [ANSWER]}, "messages", "only the answer"),
    ("answered prompt", "prompt", {"prompt": [USER, ANSWER]}, "prompt", "from the assistant"),
    ("K = 1", "comparison", native(completions=["a"], ranks=[1]), "completions", "found 1\n"),
    ("too few ranks", "comparison", native(ranks=[1]), "ranks", "found 1 for 2 completions"),
    ("rank 0", "comparison", native(ranks=[0, 1]), "ranks[0]", "found the number 0"),
    ("rank above K", "comparison", native(ranks=[1, 3]), "ranks[1]", "found the number 3"),
    ("no best rank", "comparison", native(ranks=[2, 2]), "ranks", "the best rank is 2"),
    ("rank as text", "comparison", native(ranks=["1", "2"]), "ranks[0]", "found the text '1'"),
    ("rank as truth", "comparison", native(ranks=[True, 2]), "ranks[0]", "found True"),
    ("rating 9", "comparison", native(ratings=[9, 1]), "ratings[0]", "found the number 9"),
    ("rating 0", "comparison", native(ratings=[7, 0]), "ratings[1]", "found the number 0"),
    ("flags as text", "comparison", native(flags=["rude", "ok"]), "flags[0]", "found the text 'rude'"),
    ("policies of two", "comparison", native(policy=["x"]), "policy", "expected"),
    ("no ranks", "comparison", native(ranks=...), "ranks", "missing"),
    ("completion not text", "comparison", native(completions=["a", 1]), "completions[1]", "found the number 1"),
    (
        "nothing shared",
        "comparison",
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
        "chosen",
        "no assistant turn in common",
    ),
    ("no prompt", "comparison", {"chosen": "a", "rejected": "b"}, "prompt", "missing"),
    (
        "conversations that part early",
        "comparison",
        {"chosen": [USER, ANSWER], "rejected": [{"role": "user", "content": "Ho"}, ANSWER]},
        "rejected",
        "differs from 'chosen'",
    ),
    (
        "two prompts in a row",
        "comparison",
        {"prompt": "Other", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        "prompt",
        "not the conversation",
    ),
    (
        "weight that no float holds",
        "demonstration",
        {"prompt": "p", "completion": "c", "weight": 10**400},
        "weight",
        "found the number 1000",
    ),
    ("label as object", "demonstration", {"prompt": "p", "completion": "c", "labeler": {}}, "labeler", "an object"),
    ("earlier turns", "demonstration", {"instruction": "i", "output": "o", "history": [1]}, "history", "earlier turns"),
    ("tree without root", "comparison", {"message_tree_id": "t", "prompt": "x"}, "prompt", "no message"),
    (
        "role of a tree as list",
        "comparison",
        {"message_tree_id": "t", "prompt": tree_node("x", ["prompter"])},
        "prompt.role",
        "['prompter']",
    ),
    (
        "tree of another role",
        "comparison",
        {"message_tree_id": "t", "prompt": tree_node("x", "bot")},
        "prompt.role",
        "'bot'",
    ),
    *(
        (
            f"replies {replies!r} in a tree",
            "comparison",
            {"message_tree_id": "t", "prompt": {"text": "x", "role": "prompter", "replies": replies}},
            "prompt.replies",
            "found",
        )
        for replies in (["a"], "abc", {"text": "a"})
    ),
    *(
        (
            f"rank {rank!r} in a tree",
            "comparison",
            {"message_tree_id": "t", "prompt": tree_node("x", "prompter", [tree_node("y", "assistant", rank=rank)])},
            "prompt.replies[0].rank",
            "found",
        )
        for rank in (0.5, float("nan"), float("inf"), "0", True)
    ),
    ("text that is none", "text", {"text": ["a"]}, "text", "found a list of 1"),
]


@pytest.mark.parametrize(("kind", "row", "field", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_rows(kind: Any, row: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_records(row, "f.jsonl:3", kind)
    message = str(caught.value)
    assert message.startswith(f"f.jsonl:3: {field}: ")
    assert words in message
    assert "expected: " in message


def test_a_form_that_was_asked_for_is_not_guessed() -> None:
    with pytest.raises(UserError, match="messages: the field is missing"):
        read({"prompt": "p", "completion": "c"}, "demonstration", "messages")
    with pytest.raises(UserError, match="found 'sharegtp'"):
        read({"prompt": "p", "completion": "c"}, "demonstration", "sharegtp")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_rows_of_the_page_are_rows() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    rows = [json.loads(line) for line in block.splitlines()]
    kinds = [detect_kind(row) for row in rows]
    assert kinds == ["demonstration", "comparison", "prompt"]
    for row, kind in zip(rows, kinds, strict=True):
        read(row, kind)


def test_the_message_of_the_page_is_the_message() -> None:
    row = native(completions=["a", "b", "c", "d"], ranks=[0, 1, 2, 3])
    with pytest.raises(UserError) as caught:
        read_records(row, "data/comparisons.jsonl:17", "comparison")
    assert f"instructlit: {caught.value}\n" in PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_form() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{form}` |" in page for form in FORMATS)
