"""The shared fixtures are what other tests take them to be."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def test_ids_of_the_char_tokenizer_are_character_codes(char_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Hi, you\n two."
    encoded = char_tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"] == [ord(c) for c in text]
    assert encoded["offset_mapping"] == [(i, i + 1) for i in range(len(text))]
    assert char_tokenizer.decode(encoded["input_ids"]) == text
    assert char_tokenizer("a<eos>")["input_ids"] == [97, 2]
    assert char_tokenizer("é")["input_ids"] == [1]


def test_pad_differs_from_eos_or_does_not(
    char_tokenizer: PreTrainedTokenizerFast, char_tokenizer_pad_is_eos: PreTrainedTokenizerFast
) -> None:
    assert (char_tokenizer.pad_token_id, char_tokenizer.eos_token_id) == (0, 2)
    assert (char_tokenizer_pad_is_eos.pad_token_id, char_tokenizer_pad_is_eos.eos_token_id) == (2, 2)


@pytest.mark.parametrize("fixture", ["tiny_llama_dir", "tiny_gpt2_dir"])
def test_tiny_models_load_and_speak(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    logits = model(torch.tensor([tokenizer("abc")["input_ids"]])).logits
    assert logits.shape == (1, 3, 128)
    assert model.config.eos_token_id == 2
    assert tokenizer.pad_token_id == 0
    # an untrained model must not be so flat that wrong positions or ids give the same numbers
    assert logits.std() > 0.01


def test_data_files_have_the_rows_they_promise(
    demonstrations_file: Path, comparisons_file: Path, prompts_file: Path, text_file: Path
) -> None:
    files = {
        demonstrations_file: (16, {"prompt", "completion", "use_case", "user"}),
        comparisons_file: (12, {"prompt", "completions", "ranks", "labeler"}),
        prompts_file: (16, {"prompt", "user", "use_case"}),
        text_file: (24, {"text"}),
    }
    for path, (count, keys) in files.items():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert all(set(row) == keys for row in rows)
    comparisons = [json.loads(line) for line in comparisons_file.read_text(encoding="utf-8").splitlines()]
    assert {len(row["completions"]) for row in comparisons} == {2, 3, 4}
    assert all(len(row["completions"]) == len(row["ranks"]) for row in comparisons)
    assert any(len(set(row["ranks"])) < len(row["ranks"]) for row in comparisons)
