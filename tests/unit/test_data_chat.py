"""Rendering of prompts and examples, and tokenizers that are refused."""

from pathlib import Path
from typing import Any

import pytest
from conftest import EOS_ID, make_char_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from instructlit.data.chat import Renderer, plain_text
from instructlit.data.tokenization import Encoder
from instructlit.data.tokenizers import checked_tokenizer, load_tokenizer
from instructlit.errors import UserError

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[I]{{ m['content'] }}[/I]"
    "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)
HEADERS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<eos>{% endfor %}"
OPENED = HEADERS + "{% if add_generation_prompt %}<assistant>{% endif %}"


def renderer(template: str | None = None, option: str = "auto") -> Renderer:
    tokenizer = make_char_tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer, option)


def test_plain_text_is_left_as_it_is() -> None:
    plain = renderer()
    assert plain.prompt("Q: x\nA:") == "Q: x\nA:"
    assert plain.example("Q: x\nA:", " y") == ("Q: x\nA: y", (7, 9))
    assert plain.adds_special_tokens
    assert not plain.differs("Q", "A")


def test_plain_messages() -> None:
    expected = "System:\nS\n\nUser:\nU\n\nAssistant:\nA\n\nUser:\nV\n\nAssistant:\n"
    assert renderer().prompt(TURNS) == expected == plain_text(TURNS)


def test_turns_is_the_plain_layout_as_a_template() -> None:
    turns = renderer(option="turns")
    assert turns.uses_template
    assert turns.prompt(TURNS) == plain_text(TURNS)
    assert turns.prompt("U") == "User:\nU\n\nAssistant:\n"
    text, (start, end) = turns.example("U", "A")
    assert text == "User:\nU\n\nAssistant:\nA<eos>"
    assert text[start:end] == "A<eos>"
    assert turns.ends_with_eos
    assert not turns.differs(TURNS, "A")
    assert Renderer(turns.tokenizer).prompt("U") == turns.prompt("U")  # the tokenizer carries it from here on


def test_the_template_goes_along_with_the_tokenizer(tmp_path: Path) -> None:
    renderer(option="turns").tokenizer.save_pretrained(tmp_path)
    assert Renderer(load_tokenizer(str(tmp_path))).prompt("U") == "User:\nU\n\nAssistant:\n"


def test_the_tokenizers_own_template() -> None:
    chat = renderer(OPENED)
    assert chat.prompt("U") == "<user>U<eos><assistant>"
    assert chat.example("U", "A") == ("<user>U<eos><assistant>A<eos>", (23, 29))
    assert not chat.adds_special_tokens
    assert renderer(OPENED, "plain").prompt("U") == "U"


def test_what_the_template_would_change_is_told() -> None:
    chat = renderer(OPENED)
    assert not chat.differs("U", "A")
    assert chat.differs("U", " A")  # it trims; we train on what the labeler wrote
    assert chat.example("U", " A")[0].endswith("<assistant> A<eos>")


def test_a_blank_before_the_answer_is_the_answers() -> None:
    chat = renderer(MISTRAL)
    assert chat.prompt("U") == "[I]U[/I]"
    text, (start, end) = chat.example("U", "A")
    assert (text, text[start:end]) == ("[I]U[/I] A<eos>", " A<eos>")
    assert not chat.differs("U", "A")


def test_a_template_that_does_not_open_the_turn() -> None:
    chat = renderer(HEADERS)
    assert chat.put_behind_prompts == "<assistant>"
    assert chat.prompt("U") == "<user>U<eos><assistant>"
    assert chat.example("U", "A")[0] == "<user>U<eos><assistant>A<eos>"


REASONS = (  # the last answer comes with its reasoning, be there none; earlier ones without
    "{% for m in messages %}<{{ m['role'] }}>{% set said = m['content'].split('</think>') %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "<think>{{ said[0].split('<think>')[1] if said | length > 1 else '' }}</think>{% endif %}"
    "{{ said[-1] }}<eos>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_an_empty_block_of_reasoning_is_put_behind_every_prompt() -> None:
    chat = renderer(REASONS)
    assert chat.put_behind_prompts == "<think></think>"
    earlier = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "<think>R</think>A"}, TURNS[-1]]
    start = "<user>U<eos><assistant>A<eos><user>V<eos><assistant><think></think>"
    assert chat.prompt(earlier) == start
    assert chat.example(earlier, "B") == (start + "B<eos>", (len(start), len(start) + 6))
    assert not chat.differs(earlier, "B")
    assert chat.differs(earlier, "<think>R</think>B")  # it would have two blocks
    encoder = Encoder(chat.tokenizer)
    assert encoder.example(earlier, "B").ids == [*encoder.prompt(earlier), ord("B"), EOS_ID]


def test_blanks_behind_the_last_turn_are_not_learned() -> None:
    chat = renderer(OPENED.replace("<eos>", "<eos>\n"))
    assert chat.prompt("U") == "<user>U<eos>\n<assistant>"
    assert chat.example("U", "A")[0].endswith("A<eos>")


def test_a_template_from_a_file_and_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(OPENED)
    assert renderer(option=str(tmp_path / "t.jinja")).prompt("U") == "<user>U<eos><assistant>"
    assert renderer(option=OPENED).prompt("U") == "<user>U<eos><assistant>"
    with pytest.raises(UserError, match="template: no such file: trun"):
        renderer(option="trun")


def test_several_templates_and_no_default() -> None:
    tokenizer = make_char_tokenizer()
    tokenizer.chat_template = {"rag": OPENED, "tool_use": OPENED}
    with pytest.raises(UserError, match="template: the tokenizer has the chat templates rag, tool_use"):
        Renderer(tokenizer)
    assert Renderer(tokenizer, OPENED).prompt("U") == "<user>U<eos><assistant>"


def test_roles_that_a_template_refuses() -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + OPENED
    with pytest.raises(UserError, match=r"rejects the roles system, user, assistant, user: no system"):
        renderer(picky).prompt(TURNS)
    with pytest.raises(UserError, match=r"rejects the roles user: division by zero"):
        renderer("{{ 1 / 0 }}" + OPENED)


@pytest.mark.parametrize("fault", ["{{ messages[0]['content'].index('?') }}", "{{ 1 / 0 }}", "{{ messages[7].role }}"])
def test_a_template_that_fails_is_one_message(fault: str) -> None:
    with pytest.raises(UserError, match="the chat template rejects the roles user: "):
        renderer(fault + OPENED)


def test_a_template_that_leaves_the_answer_out() -> None:
    with pytest.raises(UserError, match="omits the assistant's message"):
        renderer("{% for m in messages %}{{ m['role'] }}{% endfor %}")


def make(**names: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "</s>": 1}, [])), **names)


def test_tokenizers_that_would_have_to_be_guessed_about(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"padding_token: x has no pad token") as caught:
        checked_tokenizer(make(eos_token="</s>"), "x")
    assert '--data.padding_token "</s>"' in str(caught.value)
    with pytest.raises(UserError, match="x has no EOS token"):
        checked_tokenizer(make(pad_token="</s>"), "x")
    with pytest.raises(UserError, match=r"'<pad>' is not a token of x"):
        checked_tokenizer(make(eos_token="</s>"), "x", "<pad>")
    assert checked_tokenizer(make(eos_token="</s>"), "x", "</s>").pad_token_id == 1
    assert checked_tokenizer(make(eos_token="</s>"), "x", pad_with_eos=True).pad_token_id == 1
    assert checked_tokenizer(make(eos_token="</s>", pad_token="a"), "x", pad_with_eos=True).pad_token_id == 0
    with pytest.raises(UserError, match="no fast"):
        checked_tokenizer(object(), "x")


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer in"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="missing"):
        load_tokenizer(str(tmp_path / "models" / "none"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file"):
        load_tokenizer(str(tmp_path / "file"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="could not be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="did not answer"):
        load_tokenizer("someone/that-is-not-there")


def test_ids_are_those_of_the_hugging_face_call() -> None:
    tokenizer = make_char_tokenizer()
    assert Encoder(tokenizer).prompt("abc") == tokenizer("abc").input_ids
    tokenizer.chat_template = OPENED
    turn = [{"role": "user", "content": "abc"}]
    expected = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert Encoder(tokenizer).prompt("abc") == expected
