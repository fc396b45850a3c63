"""Fixtures for the whole suite: tokenizers whose ids can be read, models of a few thousand weights, small data files.

The character tokenizer gives every ASCII character its own code as id, so that `ids == [ord(c) for c in text]`, with 0
for <pad>, 1 for <unk> and 2 for <eos>. An expected id in a test can then be read without running anything.
"""

import json
import os
import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("INSTRUCTLIT_CACHE", "off")

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for a GPU run on the CPU; read when Triton is imported

from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY = 128
PAD_ID, UNK_ID, EOS_ID = 0, 1, 2
MAX_POSITIONS = 256


def pytest_configure() -> None:
    torch.set_num_threads(1)  # tests are small and run side by side
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite started in the background hands that on to
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes that its tests interrupt
    # the same examples on every machine, and no verdict on how busy it is
    settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
    settings.load_profile("suite")


BEGUN_FIRST = ("test_fsdp2", "test_fsdp2_checkpoints", "test_two_processes_fail", "test_lost_process")
"""Modules that wait a minute and more for processes of their own: begun last they would run by themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in BEGUN_FIRST)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state that libraries draw from
    torch.manual_seed(0)


def make_char_tokenizer(pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character, id = its ASCII code; any other character is <unk>."""
    special = {"<pad>": PAD_ID, "<unk>": UNK_ID, "<eos>": EOS_ID}
    vocabulary = special | {chr(code): code for code in range(len(special), VOCABULARY)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    core.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>" if pad_is_eos else "<pad>",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_model(config: PretrainedConfig, path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face folder with weights drawn from `config` after seed 0, and the tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def char_tokenizer() -> PreTrainedTokenizerFast:
    """id = ASCII code; pad 0 and eos 2 are distinct."""
    return make_char_tokenizer()


@pytest.fixture(scope="session")
def char_tokenizer_pad_is_eos() -> PreTrainedTokenizerFast:
    """The same with pad == eos == 2, as GPT-2 and Llama are commonly used."""
    return make_char_tokenizer(pad_is_eos=True)


@pytest.fixture(scope="session")
def char_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, char_tokenizer: PreTrainedTokenizerFast) -> Path:
    path = tmp_path_factory.mktemp("char_tokenizer")
    char_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory, char_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Llama of 2 layers and width 32 with grouped-query attention, and the character tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
    )
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny_llama", char_tokenizer)


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory: pytest.TempPathFactory, char_tokenizer: PreTrainedTokenizerFast) -> Path:
    """GPT-2 of 2 layers and width 32, with its default dropout of 0.1, and the character tokenizer."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=MAX_POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    return save_tiny_model(config, tmp_path_factory.mktemp("models") / "tiny_gpt2", char_tokenizer)


WORDS = ("red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "cat", "a")

DEMONSTRATIONS: list[dict[str, Any]] = [
    {"prompt": f"Say {word}: ", "completion": word[::-1], "use_case": "generation", "user": f"u{i % 5}"}
    for i, word in enumerate((*WORDS, "dog", "ten"))
]

COMPARISONS: list[dict[str, Any]] = [
    {
        "prompt": f"Count to {n}: ",
        "completions": [" ".join(str(i) for i in range(1, n + 1)), "no", "1", "no idea"][: 2 + n % 3],
        "ranks": [[1, 2], [1, 3, 2], [1, 3, 2, 3]][n % 3],
        "labeler": f"labeler{n % 2}",
    }
    for n in range(2, 14)
]
"""12 prompts with K of 2, 3 and 4; where K is 4 two completions tie."""

PROMPTS: list[dict[str, Any]] = [
    {"prompt": f"Q{i}" + "?" * (1 + i % 3) + " ", "user": f"u{i % 4}", "use_case": "chat"} for i in range(16)
]

TEXTS: list[dict[str, Any]] = [{"text": f"line {i}: " + "abc " * (3 + i % 4)} for i in range(24)]


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Iterable[dict[str, Any]]], Path]:
    """Write rows to a fresh JSON Lines file: `jsonl("name", rows)`."""
    return lambda name, rows: write_jsonl(tmp_path_factory.mktemp("data") / f"{name}.jsonl", rows)


@pytest.fixture(scope="session")
def demonstrations_file(jsonl: Callable[..., Path]) -> Path:
    """16 demonstrations: the completion is the word reversed."""
    return jsonl("demonstrations", DEMONSTRATIONS)


@pytest.fixture(scope="session")
def comparisons_file(jsonl: Callable[..., Path]) -> Path:
    """12 comparisons of 2 to 4 completions."""
    return jsonl("comparisons", COMPARISONS)


@pytest.fixture(scope="session")
def prompts_file(jsonl: Callable[..., Path]) -> Path:
    """16 prompts of 4 users, of three lengths."""
    return jsonl("prompts", PROMPTS)


@pytest.fixture(scope="session")
def text_file(jsonl: Callable[..., Path]) -> Path:
    """24 documents of four lengths."""
    return jsonl("texts", TEXTS)
