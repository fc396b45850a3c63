"""Ids and masks of encoded examples against values worked out by hand.

With the character tokenizer every id is the character's code, EOS is 2 and pad 0. The small BPE of this file knows one
merge, b + c, so that a prompt ending in "b" and a completion starting with "c" meet inside a token.
"""

from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from instructlit.data.chat import adds_bos
from instructlit.data.collate import (
    EncodedComparison,
    EncodedPrompt,
    collate_comparisons,
    collate_prompts,
    collate_tokens,
)
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.types import Prompt

EOS = 2
A, B, C, D = map(ord, "abcd")

CHATML = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def bpe(bos: bool = False, eos: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """a=10 b=11 c=12 d=13, "bc"=20 by its only merge; <s>=1 </s>=2 <pad>=0, <u>=3 <a>=4 <end>=5."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<u>": 3, "<a>": 4, "<end>": 5}
    vocabulary |= {"a": 10, "b": 11, "c": 12, "d": 13, "bc": 20, "\n": 30}
    core = Tokenizer(models.BPE(vocabulary, [("b", "c")]))
    if bos or eos:
        template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
        core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<u>", "<a>", "<end>"]})  # type: ignore[dict-item]
    return tokenizer


def test_prompt_is_masked_and_eos_is_learned(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = Encoder(char_tokenizer).example("ab", "cd")
    assert encoded.ids == [A, B, C, D, EOS]
    assert encoded.loss_mask == [False, False, True, True, True]
    assert not encoded.truncated


def test_eos_is_learned_where_pad_is_eos(char_tokenizer_pad_is_eos: PreTrainedTokenizerFast) -> None:
    """Checklist 1: a mask made by comparing ids with the pad id would lose the last real EOS of the shorter row."""
    tokenizer = char_tokenizer_pad_is_eos
    encoder = Encoder(tokenizer)
    rows = [encoder.example("a", "b"), encoder.example("ab", "cd")]
    batch = collate_tokens(rows, EOS)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    assert batch.input_ids.tolist() == [[A, B, EOS, EOS, EOS], [A, B, C, D, EOS]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]


def test_eos_is_read_where_pad_is_eos(char_tokenizer_pad_is_eos: PreTrainedTokenizerFast) -> None:
    """Checklist 1, of comparisons, whose scores are read at EOS, and of prompts in which an earlier turn ends so."""
    encoder = Encoder(char_tokenizer_pad_is_eos)
    rows = [encoder.example("a", "bc"), encoder.example("a", "b")]
    batch = collate_comparisons([EncodedComparison(rows, [1, 2], None)], EOS)
    assert batch.input_ids.tolist() == [[A, B, C, EOS], [A, B, EOS, EOS]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.response_mask.tolist() == [[0, 1, 1, 1], [0, 1, 1, 0]]
    prompts = collate_prompts([EncodedPrompt([A, EOS, B], Prompt("")), EncodedPrompt([EOS, B], Prompt(""))], EOS)
    assert prompts.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize(("limit", "ids", "mask"), [(4, [A, B, C, D], [0, 0, 1, 1]), (3, [A, B, C], [0, 0, 1])])
def test_truncation_gains_no_eos(
    char_tokenizer: PreTrainedTokenizerFast, limit: int, ids: list[int], mask: list[int]
) -> None:
    """Checklist 2. At a limit of 4 only the EOS is cut: the row still counts as truncated."""
    encoded = Encoder(char_tokenizer, max_length=limit).example("ab", "cd")
    assert encoded.ids == ids
    assert encoded.loss_mask == [bool(m) for m in mask]
    assert encoded.truncated


def test_exactly_full_is_not_truncated(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = Encoder(char_tokenizer, max_length=5).example("ab", "cd")
    assert (encoded.ids, encoded.truncated) == ([A, B, C, D, EOS], False)


def test_nothing_left_to_learn(char_tokenizer: PreTrainedTokenizerFast) -> None:
    """Checklist 3: a prompt that fills the row leaves no target."""
    encoded = Encoder(char_tokenizer, max_length=2).example("ab", "cd")
    assert encoded.ids == [A, B]
    assert encoded.all_masked
    assert not any(encoded.loss_mask)


def test_an_unknown_token_that_is_eos_is_not_taken_for_an_added_one() -> None:
    """As GPT-2's configs have it; nothing is known of a text here that could be used to find out what is added."""
    core = Tokenizer(models.WordLevel({"<end>": 0, "C": 1, "G": 2, "T": 3}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # type: ignore[assignment]
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<end>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    encoder = Encoder(tokenizer)
    assert encoder.prompt("GCT") == [2, 1, 3]
    assert encoder.example("GC", "T").ids == [2, 1, 3, 0]
    assert not adds_bos(tokenizer)


def test_token_across_the_boundary_belongs_to_the_completion() -> None:
    """Checklist 4. "ab" + "cd" is a, bc, d: tokenising the prompt alone (a, b) would put the boundary after "bc"."""
    tokenizer = bpe()
    encoder = Encoder(tokenizer)
    encoded = encoder.example("ab", "cd")
    assert encoded.ids == [10, 20, 13, 2]
    assert encoded.loss_mask == [False, True, True, True]
    assert encoder.prompt("ab") == [10, 11]
    assert not encoder.prompt_is_prefix("ab", encoded)
    offsets = tokenizer("abcd", return_offsets_mapping=True)["offset_mapping"]
    assert [end > 2 for _, end in offsets] == encoded.loss_mask[:-1]


def test_prompt_ids_begin_the_example_where_nothing_merges() -> None:
    encoder = Encoder(bpe())
    encoded = encoder.example("ab\n", "cd")
    assert encoded.ids == [10, 11, 30, 12, 13, 2]
    assert encoded.ids[: encoded.start] == encoder.prompt("ab\n")
    assert encoder.prompt_is_prefix("ab\n", encoded)


def test_a_prompt_of_as_many_other_ids_is_no_prefix() -> None:
    """Alone "ab" is one token; before a "c" it is "a", and the token over the boundary begins as far in."""
    core = Tokenizer(models.BPE({"</s>": 2, "a": 10, "b": 11, "c": 12, "bc": 20, "ab": 21}, [("b", "c"), ("a", "b")]))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>"))
    encoded = encoder.example("ab", "c")
    assert (encoded.ids, encoded.start, encoder.prompt("ab")) == ([10, 20, 2], 1, [21])
    assert not encoder.prompt_is_prefix("ab", encoded)


def test_empty_completion_learns_eos_alone(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = Encoder(char_tokenizer).example("ab", "")
    assert encoded.ids == [A, B, EOS]
    assert encoded.loss_mask == [False, False, True]


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("completion", ["cd", "cd</s>"])
def test_one_bos_and_one_eos_in_plain_text(adds_eos: bool, completion: str) -> None:
    """Whether or not the tokenizer adds EOS, and whether or not the completion brings its own."""
    encoder = Encoder(bpe(bos=True, eos=adds_eos))
    assert encoder.example("a", completion).ids == [1, 10, 12, 13, 2]
    assert encoder.example("<s>a", completion).ids == [1, 10, 12, 13, 2]
    assert [encoder.example(prompt, completion).start for prompt in ("a", "<s>a")] == [2, 2]
    assert encoder.prompt("a") == [1, 10]
    assert encoder.example("a", "").loss_mask == [False, False, True]
    after_a_turn = encoder.example("a</s>", "")
    assert (after_a_turn.ids, after_a_turn.start) == ([1, 10, 2, 2], 3), "the EOS of the prompt is not the response's"


@pytest.mark.parametrize("text", ["acd", "acd</s>", "acd</s></s>", "<s>acd</s>"])
@pytest.mark.parametrize("adds_eos", [False, True])
def test_one_bos_and_one_eos_around_a_document(adds_eos: bool, text: str) -> None:
    assert Encoder(bpe(bos=True, eos=adds_eos)).document(text) == [1, 10, 12, 13, 2]


def test_template_writes_bos_once() -> None:
    """Checklist 5: the tokenizer would add <s> and the template writes <s>."""
    tokenizer = bpe(bos=True, eos_token="<end>")
    tokenizer.chat_template = "<s>" + CHATML
    encoder = Encoder(tokenizer)
    encoded = encoder.example("a", "cd")
    assert encoded.ids == [1, 3, 10, 5, 4, 12, 13, 5]  # <s> <u> a <end> <a> c d <end>
    assert encoded.loss_mask == [False] * 5 + [True] * 3
    assert encoder.prompt("a") == encoded.ids[:5]


def test_template_without_bos_gets_none() -> None:
    """What the template writes is all there is, though the tokenizer would add <s> to plain text."""
    tokenizer = bpe(bos=True, eos_token="<end>")
    tokenizer.chat_template = CHATML
    assert Encoder(tokenizer).example("a", "cd").ids == [3, 10, 5, 4, 12, 13, 5]


def test_turn_that_does_not_end_in_eos_gets_one() -> None:
    """The template closes a turn with <end>, the tokenizer's EOS is </s>: both are learned, </s> last."""
    tokenizer = bpe()
    tokenizer.chat_template = CHATML
    encoded = Encoder(tokenizer).example("a", "cd")
    assert encoded.ids == [3, 10, 5, 4, 12, 13, 5, 2]
    assert encoded.loss_mask == [False] * 4 + [True] * 4


def test_only_the_last_turn_is_learned() -> None:
    tokenizer = bpe(eos_token="<end>")
    tokenizer.chat_template = CHATML
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    encoded = Encoder(tokenizer).example(turns, "d")
    assert encoded.ids == [3, 10, 5, 4, 11, 5, 3, 12, 5, 4, 13, 5]
    assert encoded.loss_mask == [False] * 10 + [True] * 2


def test_comparison_batch(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(char_tokenizer)
    rows = [
        EncodedComparison([encoder.example("a", c) for c in ("b", "cd")], [2, 1], "x"),
        EncodedComparison([encoder.example("b", c) for c in ("", "c", "d")], [1, 1, 2], None),
    ]
    batch = collate_comparisons(rows, 0)
    assert batch.input_ids.tolist() == [
        [A, B, EOS, 0],
        [A, C, D, EOS],
        [B, EOS, 0, 0],
        [B, C, EOS, 0],
        [B, D, EOS, 0],
    ]
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 4, 2, 3, 3]
    assert batch.response_mask.tolist() == [
        [0, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
    ]
    assert batch.prompt_index.tolist() == [0, 0, 1, 1, 1]
    assert batch.ranks.tolist() == [2, 1, 1, 1, 2]
    assert batch.labelers == ["x", None]


def test_reward_input_is_what_the_policy_produces(char_tokenizer: PreTrainedTokenizerFast) -> None:
    """Checklist 7: prompt ids plus sampled ids, EOS included, are the ids the reward model was trained on; a response
    cut at the limit has no EOS in either."""
    encoder = Encoder(char_tokenizer)
    assert [*encoder.prompt("ab"), C, D, EOS] == encoder.example("ab", "cd").ids
    assert [*encoder.prompt("ab"), C, D] == Encoder(char_tokenizer, max_length=4).example("ab", "cdc").ids


def test_prompts_are_left_padded(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(char_tokenizer)
    prompts = [Prompt("a"), Prompt("abc")]
    batch = collate_prompts([EncodedPrompt(encoder.prompt(p.prompt), p) for p in prompts], 0)
    assert batch.input_ids.tolist() == [[0, 0, A], [A, B, C]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch.prompts == prompts
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool


def test_blocks_learn_all_tokens_but_the_first() -> None:
    batch = collate_tokens([Encoded([A, B, EOS], start=1)], 0)
    assert batch.loss_mask.tolist() == [[False, True, True]]


def test_ids_do_not_depend_on_what_others_switched_on(char_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(char_tokenizer)
    char_tokenizer("abcd", truncation=True, max_length=2, padding="max_length")
    assert encoder.example("ab", "cd").ids == [A, B, C, D, EOS]
    assert Encoder(char_tokenizer).example("ab", "cd").ids == [A, B, C, D, EOS]
