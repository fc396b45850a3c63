"""The datamodules: what their batches hold, how rows are split, dropped and counted, that a run can be continued."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import COMPARISONS, DEMONSTRATIONS, EOS_ID, PROMPTS, TEXTS, make_char_tokenizer
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instructlit.data import ComparisonData, DemonstrationData, PromptData, Source, TextData
from instructlit.data.datamodule import DataModule
from instructlit.data.splits import hash64, prompt_key
from instructlit.data.tokenization import Encoded
from instructlit.errors import UserError
from instructlit.types import Comparison, ComparisonBatch, PromptBatch, TokenBatch


@pytest.fixture
def tokenizer(char_tokenizer_dir: Path) -> str:
    return str(char_tokenizer_dir)


def ready(data: DataModule, world_size: int = 1, rank: int = 0, device: str = "cpu") -> Any:
    if world_size > 1 or device != "cpu":
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=world_size, global_rank=rank, limit_train_batches=1.0, overfit_batches=0, strategy=strategy
        )
    data.setup()
    return data


def text_of(batch: TokenBatch, row: int, learned: bool = False) -> str:
    """The characters of a row; with `learned` only those that are targets. EOS shows as $."""
    mask = batch.loss_mask[row] if learned else batch.attention_mask[row]
    return "".join("$" if i == EOS_ID else chr(i) for i in batch.input_ids[row][mask].tolist())


@pytest.mark.parametrize("kind", [DemonstrationData, ComparisonData])
@pytest.mark.parametrize("ending", ["\n\n", "\n", "\nA:"])
def test_prompts_that_are_other_ids_alone_are_told(
    tmp_path: Path, jsonl: Callable[..., Path], kind: type[DataModule], ending: str
) -> None:
    """GPT-2 splits off the last white space before a word: of a blank line that ends a prompt it makes one token alone,
    and two before a completion."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", "ĊĊ"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>").save_pretrained(tmp_path)
    answers = {"completion": "One.", "completions": ["One.", "Two."], "ranks": [1, 2]}
    rows = jsonl("d", [{"prompt": f"Say {n}.{ending}", **answers} for n in range(8)])
    data: Any = kind(str(tmp_path), str(rows), validation_fraction=0.0)  # type: ignore[call-arg]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup()
    told = [str(warning.message) for warning in caught if "other ids alone" in str(warning.message)]
    assert len(told) == (ending == "\n\n")
    if told:
        assert told[0].startswith(f"{rows}:1: 8 of the first 8 prompts")


def test_demonstrations(tokenizer: str, demonstrations_file: Path) -> None:
    data = ready(DemonstrationData(tokenizer, str(demonstrations_file), batch_size=4, max_length=64))
    train, validation = list(data.train_dataloader()), list(data.val_dataloader())
    assert all(isinstance(batch, TokenBatch) and len(batch) == 4 for batch in train)
    seen = {
        text_of(batch, row): text_of(batch, row, True) for batch in [*train, *validation] for row in range(len(batch))
    }
    expected = {f"{d['prompt']}{d['completion']}$": f"{d['completion']}$" for d in DEMONSTRATIONS}
    assert seen.items() <= expected.items()
    assert sum(map(len, validation)) >= 1
    assert len(data.test_dataloader()) == len(data.val_dataloader())


def test_training_and_validation_share_no_prompt(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    """Several labelers rank the same prompts: all rows of a prompt are on one side."""
    rows = [{**row, "labeler": f"l{k}"} for k in range(5) for row in COMPARISONS]
    data = ready(
        ComparisonData(tokenizer, str(jsonl("c", rows)), validation_fraction=0.3, batch_size=2, max_length=128)
    )
    prompts = {name: {split.dataset.record(int(i)).prompt for i in split.rows} for name, split in data.splits.items()}
    assert all(prompts.values())
    assert prompts["train"].isdisjoint(prompts["validation"])
    assert len(data.splits["train"].rows) % 5 == len(data.splits["validation"].rows) % 5 == 0
    assert data.report.shared_prompts == 0


def test_shared_prompts_are_said(tokenizer: str, demonstrations_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = str(demonstrations_file)
    with caplog.at_level(logging.INFO):
        data = ready(DemonstrationData(tokenizer, file, validation=file, batch_size=4, max_length=64))
    assert data.report.shared_prompts == 16
    assert "training and validation share 16 prompts" in caplog.text
    assert "train: 16 demonstrations of 16 rows" in caplog.text


def test_comparisons_keep_a_prompts_completions_together(tokenizer: str, comparisons_file: Path) -> None:
    data = ready(ComparisonData(tokenizer, str(comparisons_file), batch_size=3, max_length=128))
    expected = {(c["prompt"], tuple(c["completions"]), tuple(c["ranks"]), c["labeler"]) for c in COMPARISONS}
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert isinstance(batch, ComparisonBatch)
        assert len(batch) == int(batch.prompt_index.max()) + 1
        assert batch.prompt_index.tolist() == sorted(batch.prompt_index.tolist())
        as_tokens = TokenBatch(batch.input_ids, batch.attention_mask, batch.response_mask)
        for p in range(len(batch)):
            rows = [i for i, q in enumerate(batch.prompt_index.tolist()) if q == p]
            completions = tuple(text_of(as_tokens, i, True).removesuffix("$") for i in rows)
            prompt = text_of(as_tokens, rows[0])[: -len(completions[0]) - 1]
            assert (prompt, completions, tuple(batch.ranks[rows].tolist()), batch.labelers[p]) in expected


@pytest.mark.parametrize(("length", "learned"), [(16, ["xyz$", "xy", "x$"]), (4, ["xyz", "xy", "x$"])])
def test_a_completion_that_was_cut_off_has_no_eos(
    tokenizer: str, jsonl: Callable[..., Path], length: int, learned: list[str]
) -> None:
    """Where the policy was cut off, as its response is scored, and where `max_length` cuts."""
    row = {"prompt": "a", "completions": ["xyz", "xy", "x"], "ranks": [1, 2, 3], "ended": [True, False, True]}
    data = ready(
        ComparisonData(tokenizer, str(jsonl("c", [row])), validation_fraction=0, batch_size=1, max_length=length)
    )
    (batch,) = data.train_dataloader()
    as_tokens = TokenBatch(batch.input_ids, batch.attention_mask, batch.response_mask)
    assert [text_of(as_tokens, i, True) for i in range(3)] == learned
    assert data.report.splits[0].truncated == (length == 4)


def test_ties_stay_and_a_prompt_of_nothing_but_ties_goes(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    rows = [
        {"prompt": "a", "completions": ["x", "y", "y"], "ranks": [1, 1, 2]},
        {"prompt": "b", "completions": ["x", "y"], "ranks": [1, 1]},
    ]
    data = ready(
        ComparisonData(
            tokenizer,
            str(jsonl("c", rows)),
            validation_fraction=0,
            batch_size=1,
            max_length=16,
            max_dropped_fraction=0.5,
        )
    )
    (batch,) = data.train_dataloader()
    assert batch.ranks.tolist() == [1, 1, 2]
    assert data.report.splits[0].dropped == {"with all completions tied": 1}


def test_comparisons_that_differ_only_beyond_the_cut_are_dropped(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    rows = [
        {"prompt": "a", "completions": ["wxyz", "wxyyy"], "ranks": [1, 2]},
        {"prompt": "b", "completions": ["wxyz", "wxyyy", "w"], "ranks": [1, 2, 3]},
        {"prompt": "c", "completions": ["w", "w"], "ranks": [1, 2]},
        {"prompt": "d", "completions": ["w", "w"], "ranks": [1, 2], "ended": [True, False]},
    ]
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 2, "max_length": 4, "max_prompt_length": 1}
    data = ready(ComparisonData(tokenizer, str(jsonl("c", rows)), max_dropped_fraction=0.5, **options))
    (batch,) = data.train_dataloader()
    assert sorted(batch.ranks.tolist()) == [1, 1, 2, 2, 3]
    dropped = {"with identical completions up to 4 tokens": 1, "with identical completions": 1}
    assert data.report.splits[0].dropped == dropped


def test_the_demonstrations_of_the_shift(tokenizer: str, comparisons_file: Path, demonstrations_file: Path) -> None:
    file = str(comparisons_file)
    with_them = ready(
        ComparisonData(tokenizer, file, batch_size=2, max_length=64, demonstrations=str(demonstrations_file))
    )
    loader = with_them.demonstration_dataloader()
    assert loader is not None
    rows = [text_of(batch, i) for batch in loader for i in range(len(batch))]
    assert rows == [f"{d['prompt']}{d['completion']}$" for d in DEMONSTRATIONS]
    assert ready(ComparisonData(tokenizer, file, batch_size=2, max_length=64)).demonstration_dataloader() is None


def long_rows(n: int, long: int) -> list[dict[str, str]]:
    return [{"prompt": f"{i:03}" + "p" * (40 if i < long else 0), "completion": "c" * (i % 3)} for i in range(n)]


def test_long_prompts_and_empty_completions_are_dropped_and_counted(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    file = str(jsonl("d", long_rows(30, 3)))
    data = ready(
        DemonstrationData(tokenizer, file, validation_fraction=0, batch_size=4, max_length=64, max_dropped_fraction=0.5)
    )
    report = data.report.splits[0]
    # rows 0 to 2 have 43 characters of prompt, row 0 and every third after it no completion
    assert report.dropped == {"with an empty completion": 10, "with a prompt over 32 tokens": 2}
    assert (report.rows, report.kept) == (30, 18)
    assert json.loads(json.dumps(data.report.as_dict()))["splits"][0]["dropped"] == report.dropped
    with pytest.raises(UserError, match=r"12 of 30 demonstrations would be dropped: .* empty .*\n.*at most 20%"):
        ready(DemonstrationData(tokenizer, file, batch_size=4, max_length=64))


def test_rows_with_nothing_to_learn_are_dropped_loudly(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    """Checklist 3: with a prompt as long as the row no target is left."""
    file = str(jsonl("d", [{"prompt": "p" * 8, "completion": "c"}, {"prompt": "p", "completion": "c" * 20}]))
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 1, "max_length": 8, "max_prompt_length": 8}
    data = ready(DemonstrationData(tokenizer, file, max_dropped_fraction=0.5, **options))
    assert data.report.splits[0].dropped == {"with no token left to learn": 1}
    assert data.report.splits[0].truncated == 1
    (batch,) = data.train_dataloader()
    assert (text_of(batch, 0), text_of(batch, 0, True)) == ("pccccccc", "ccccccc")
    with pytest.raises(UserError, match="1 of 2 demonstrations would be dropped: 1 with no token left to learn"):
        ready(DemonstrationData(tokenizer, file, **options))


@pytest.mark.parametrize("option", ["validation", "test"])
def test_files_to_look_at_are_held_to_the_same_share(
    tokenizer: str, demonstrations_file: Path, jsonl: Callable[..., Path], option: str
) -> None:
    """Checklist 3: figures of the few rows that are left would be taken for those of all, as `data check` says."""
    options: dict[str, Any] = {"batch_size": 4, option: str(jsonl("d", long_rows(9, 4)))}
    train = str(demonstrations_file)
    with pytest.raises(UserError, match=rf"^{option}: 5 of 9 demonstrations would be dropped: .*\n.*at most 20%"):
        ready(DemonstrationData(tokenizer, train, max_length=64, **options))
    data = ready(DemonstrationData(tokenizer, train, max_length=64, max_dropped_fraction=0.6, **options))
    assert len(data.splits[option].rows) == 4


def test_a_comparison_goes_with_any_completion_that_cannot_be_scored(
    tokenizer: str, jsonl: Callable[..., Path]
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": p, "completions": ["", "x"], "ranks": [2, 1]} for p in "ab"]
    rows[0]["ended"] = [False, True]  # cut off before its first token
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 1, "max_length": 16}
    file = str(jsonl("c", rows))
    with pytest.raises(UserError, match="1 of 2 comparisons would be dropped: 1 with no token left to learn"):
        ready(ComparisonData(tokenizer, file, **options))
    data = ready(ComparisonData(tokenizer, file, max_dropped_fraction=0.5, **options))
    assert [data.splits["train"].dataset.record(int(i)).prompt for i in data.splits["train"].rows] == ["b"]


def test_a_comparisons_prompt_is_as_long_as_before_any_of_its_completions(tokenizer: str) -> None:
    """A token that a completion shares with the prompt is the completion's, so that the lengths may differ."""
    data = ComparisonData(tokenizer, "x", max_length=16)
    record = Comparison("p", ["x", "y"], [1, 2])
    reasons = [data.measure(record, [Encoded([n] * 12, n) for n in starts]).dropped for starts in ((8, 7), (7, 9))]
    assert reasons == [None, "with a prompt over 8 tokens"]


def test_demonstrations_of_the_shift_are_held_to_the_limits_of_the_others(
    tokenizer: str, comparisons_file: Path, jsonl: Callable[..., Path]
) -> None:
    rows = [{"prompt": "p" * n, "completion": "c"} for n in (20, 21, 22, 23)]
    options: dict[str, Any] = {"batch_size": 2, "max_length": 64, "demonstrations": str(jsonl("d", rows))}
    lost = r"^demonstrations: 2 of 4 demonstrations would be dropped: 2 with a prompt over 21 tokens\n.*at most 20%"
    with pytest.raises(UserError, match=lost):
        ready(ComparisonData(tokenizer, str(comparisons_file), max_prompt_length=21, **options))
    options |= {"max_prompt_length": 21, "max_dropped_fraction": 0.5}
    data = ready(ComparisonData(tokenizer, str(comparisons_file), **options))
    assert [text_of(batch, i) for batch in data.demonstration_dataloader() for i in range(len(batch))] == [
        "p" * n + "c$" for n in (20, 21)
    ]


def test_nothing_left_says_why(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    file = str(jsonl("d", long_rows(5, 5)))
    with pytest.raises(UserError, match=r"train: none of 5 demonstrations is left: .*over 8 tokens"):
        ready(DemonstrationData(tokenizer, file, max_length=16, batch_size=1, max_dropped_fraction=1.0))


def test_nothing_left_of_what_is_held_out_is_an_error(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    """Else the run has no validation, and ends with a metric that was never logged."""
    rows = sorted(DEMONSTRATIONS, key=lambda row: hash64(prompt_key(row["prompt"])))
    rows[0] = {**rows[0], "completion": ""}
    with pytest.raises(UserError, match=r"validation_fraction: the 1 held-out .* would all be dropped: .* empty compl"):
        ready(DemonstrationData(tokenizer, str(jsonl("d", rows)), validation_fraction=1e-6, batch_size=2))


def test_a_wrong_row_names_its_file_and_line(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    file = jsonl("d", [*DEMONSTRATIONS, {"prompt": "p", "completion": ["c"]}])
    with pytest.raises(UserError, match=r"d\.jsonl:17: completion: found a list of 1\n  expected: text"):
        ready(DemonstrationData(tokenizer, str(file), batch_size=4))


def test_weights_and_several_sources(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    files = [jsonl("d", [{"prompt": p, "completion": c} for c in "xyz"]) for p in "ab"]
    sources = [str(files[0]), Source(str(files[1]), weight=2.0)]
    data = ready(DemonstrationData(tokenizer, sources, validation_fraction=0, batch_size=9, max_length=8))
    (batch,) = data.train_dataloader()
    assert sorted(text_of(batch, i) for i in range(9)) == sorted(["ax$", "ay$", "az$", *["bx$", "by$", "bz$"] * 2])


def test_text_is_mixed_into_demonstrations(tokenizer: str, demonstrations_file: Path, text_file: Path) -> None:
    data = ready(
        DemonstrationData(
            tokenizer,
            str(demonstrations_file),
            batch_size=4,
            max_length=32,
            pretraining=str(text_file),
            pretraining_fraction=0.25,
            validation_fraction=0,
        )
    )
    batches = list(data.train_dataloader())
    assert len(batches) == 16 // 3
    for batch in batches:
        learned = (batch.loss_mask.sum(1) == batch.attention_mask.sum(1) - 1).tolist()
        assert learned == [False, False, False, True]
        assert text_of(batch, 0).startswith("Say ")
        assert "abc" in text_of(batch, 3)
    with pytest.raises(UserError, match="both of them, or neither"):
        DemonstrationData(tokenizer, "x", pretraining="y")


def test_text_is_cut_into_blocks(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    file = str(jsonl("t", [{"text": "abcd"}, {"text": " "}, {"text": "ef"}, {"text": "ghi"}]))
    data = ready(TextData(tokenizer, file, validation_fraction=0, batch_size=1, block_size=5))
    rows = sorted(text_of(batch, 0) for batch in data.train_dataloader())
    assert rows == ["abcd$", "ef$gh"]
    assert data.report.splits[0].dropped == {"tokens after the last full block": 2, "blank documents": 1}
    short = ready(TextData(tokenizer, file, validation_fraction=0, batch_size=1, block_size=20))
    assert [text_of(batch, 0) for batch in short.train_dataloader()] == ["abcd$ef$ghi$"], "less than a block is one"
    whole = ready(TextData(tokenizer, file, validation=file, batch_size=1, block_size=5))
    assert [text_of(batch, 0) for batch in whole.val_dataloader()] == ["abcd$", "ef$gh", "i$"]
    assert [text_of(batch, 0, True) for batch in whole.val_dataloader()] == ["bcd$", "f$gh", "$"]
    lone = ready(TextData(tokenizer, file, validation=file, batch_size=1, block_size=11))
    assert [text_of(batch, 0) for batch in lone.val_dataloader()] == ["abcd$ef$ghi"], "EOS alone has no token to learn"


def test_without_packing_every_document_stands_alone(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    texts = [{"text": text} for text in ("abcd", " ", "ef", "ghijkl", "", "m", "nopqr")]
    first, second = str(jsonl("t", texts[:4])), str(jsonl("u", texts[4:]))
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 1, "block_size": 5, "packing": False}
    data = ready(TextData(tokenizer, [first, second], **options))
    rows = sorted(text_of(batch, 0) for batch in data.train_dataloader())
    assert rows == ["abcd$", "ef$", "ghijk", "l$", "m$", "nopqr"], "the lone EOS behind nopqr has nothing to learn"
    learnt = sorted(text_of(batch, 0, True) for batch in data.train_dataloader())
    assert learnt == ["$", "$", "bcd$", "f$", "hijk", "opqr"]
    assert data.report.splits[0].dropped == {"last tokens with nothing to learn": 1, "blank documents": 2}
    assert data.splits["train"].lengths.tolist() == [5, 3, 5, 2, 2, 5]
    assert [group.tolist() for group in data.splits["train"].groups] == [[0, 1, 2, 3], [4, 5]]
    one_longer = ready(TextData(tokenizer, [str(jsonl("v", [{"text": "abcde"}, *texts[2:4]])), second], **options))
    assert one_longer.splits["train"].fingerprint != data.splits["train"].fingerprint


def test_documents_of_like_length_share_a_batch(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    file = str(jsonl("t", [{"text": "x" * n} for n in (1, 7, 2, 8, 1, 7, 2, 8)]))
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 2, "block_size": 9, "packing": False}
    batches = ready(TextData(tokenizer, file, **options, length_bucketing=True)).train_dataloader()
    lengths = [batch.attention_mask.sum(1).tolist() for batch in batches]
    assert sorted(lengths) == [[2, 2], [3, 3], [8, 8], [9, 9]]


def test_prompts_with_completions_of_like_length_share_a_batch(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": str(n), "completions": ["x" * n, "y"], "ranks": [1, 2]} for n in (1, 17, 2, 18, 1, 17, 2, 18)]
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 2, "max_length": 32, "length_bucketing": True}
    batches = ready(ComparisonData(tokenizer, str(jsonl("c", rows)), **options)).train_dataloader()
    longest = [batch.response_mask.sum(1)[::2].tolist() for batch in batches]  # with EOS
    assert sorted(longest) == [[2, 2], [3, 3], [18, 18], [19, 19]]


def test_documents_are_held_out_whole(tokenizer: str, text_file: Path) -> None:
    data = ready(TextData(tokenizer, str(text_file), validation_fraction=0.2, batch_size=2, block_size=8))
    tokens = [split.dataset.files[0].tokens for split in data.splits.values()]
    assert sum(tokens) == sum(len(row["text"]) + 1 for row in TEXTS)
    held = "".join(chr(i) for i in data.splits["validation"].dataset.files[0].read(0, 10**6)).split("\2")[:-1]
    assert set(held) < {row["text"] for row in TEXTS}
    assert held


def test_prompts_are_cleaned(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    poem = "write a poem about the sea and the "
    rows = [
        *({"prompt": poem + end, "user": "a"} for end in ("ship", "wind", "sand")),
        *({"prompt": f"prompt {i}", "user": "b"} for i in range(6)),
        {"prompt": "mail me: jane@example.org", "user": "c"},
        {"prompt": "x" * 90, "user": "c"},
    ]
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 2, "max_prompt_length": 80}
    options |= {"duplicate_prefix": 20, "max_prompts_per_user": 4}
    data = ready(PromptData(tokenizer, str(jsonl("p", rows)), filter_personal_data=True, **options))
    assert data.report.splits[0].dropped == {
        "over 80 tokens": 1,
        "near duplicates": 2,
        "over the cap of their user": 2,
        "with personal data": 1,
    }
    off = {**options, "duplicate_prefix": 0, "max_prompts_per_user": 0}
    assert ready(PromptData(tokenizer, str(jsonl("p", rows)), **off)).report.splits[0].kept == 10


def test_a_prompt_without_a_token_is_dropped(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    """A policy has nothing to answer: among others its row was noise, alone it was a stack trace."""
    core = make_char_tokenizer().backend_tokenizer
    core.normalizer = normalizers.Replace("\u200b", "")
    words = {"eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **words).save_pretrained(tmp_path)
    file = jsonl("p", [{"prompt": "\u200b"}, {"prompt": "hello"}])
    data = PromptData(str(tmp_path), str(file), validation_fraction=0, batch_size=1, max_dropped_fraction=0.5)
    assert ready(data).report.splits[0].dropped == {"without a token": 1}


def test_prompts_of_one_user_stay_together(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": f"question {i}", "user": f"u{i % 9}"} for i in range(90)]
    file = str(jsonl("p", rows))
    data = ready(PromptData(tokenizer, file, validation_fraction=0.3, batch_size=2, max_prompt_length=64))
    users = {n: {s.dataset.record(int(i)).user for i in s.rows} for n, s in data.splits.items()}
    assert users["train"].isdisjoint(users["validation"])
    by_prompt = ready(PromptData(tokenizer, file, validation_fraction=0.3, batch_size=2, split_by_user=False))
    users = {n: {s.dataset.record(int(i)).user for i in s.rows} for n, s in by_prompt.splits.items()}
    assert users["train"] & users["validation"]


def test_prompts_beside_text(tokenizer: str, prompts_file: Path, text_file: Path) -> None:
    data = ready(
        PromptData(
            tokenizer,
            str(prompts_file),
            validation_fraction=0,
            batch_size=4,
            pretraining=str(text_file),
            pretraining_per_episode=2,
            pretraining_block_size=8,
        )
    )
    loaders = data.train_dataloader()
    assert list(loaders) == ["prompts", "pretraining"]
    assert len(loaders["prompts"]) == len(loaders["pretraining"]) == 4
    prompts, text = next(iter(loaders["prompts"])), next(iter(loaders["pretraining"]))
    assert isinstance(prompts, PromptBatch)
    assert text.input_ids.shape == (8, 8)
    for ids, mask, prompt in zip(prompts.input_ids, prompts.attention_mask, prompts.prompts, strict=True):
        assert "".join(map(chr, ids[mask].tolist())) == prompt.prompt
        assert mask.tolist() == sorted(mask.tolist())  # padding first
    assert {p.prompt for batch in loaders["prompts"] for p in batch.prompts} <= {row["prompt"] for row in PROMPTS}
    assert list(ready(PromptData(tokenizer, str(prompts_file), batch_size=4)).train_dataloader()) == ["prompts"]


def test_the_seed_makes_the_order_of_prompts_and_of_text(tokenizer: str, prompts_file: Path, text_file: Path) -> None:
    options: dict[str, Any] = {"validation_fraction": 0, "batch_size": 4, "pretraining_block_size": 8}

    def order(seed: int) -> list[list[list[int]]]:
        data = ready(PromptData(tokenizer, str(prompts_file), pretraining=str(text_file), seed=seed, **options))
        return [[batch.input_ids.tolist() for batch in loader] for loader in data.train_dataloader().values()]

    first, again, other = order(1), order(1), order(2)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_ranks_share_a_batch(tokenizer: str, demonstrations_file: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "max_length": 64, "validation_fraction": 0}
    file = str(demonstrations_file)
    whole = list(ready(DemonstrationData(tokenizer, file, **options)).train_dataloader())
    parts = [list(ready(DemonstrationData(tokenizer, file, **options), 2, r).train_dataloader()) for r in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        rows = [text_of(share, i) for share in shares for i in range(len(share))]
        assert sorted(rows) == sorted(text_of(batch, i) for i in range(4))
    with pytest.raises(UserError, match="4 rows cannot be split evenly over 3"):
        ready(DemonstrationData(tokenizer, file, **options), 3).train_dataloader()


def test_a_checkpoint_of_other_rows_is_refused(tokenizer: str, jsonl: Callable[..., Path]) -> None:
    """As many rows, another file: the order of the old one would mean other demonstrations."""

    def made(rows: list[dict[str, Any]]) -> DemonstrationData:
        data = ready(DemonstrationData(tokenizer, str(jsonl("d", rows)), batch_size=4, validation_fraction=0))
        data.train_dataloader()
        return data

    state = made(DEMONSTRATIONS).state_dict()
    same, other = (made([{**row, "prompt": row["prompt"] + end} for row in DEMONSTRATIONS]) for end in ("", "!"))
    for data in (same, other):
        data.setup()
        data.load_state_dict(state)
    same.train_dataloader()
    with pytest.raises(
        UserError, match=r"--resume: the data differs from what the run began with: .*data was \w+, is \w+"
    ):
        other.train_dataloader()


@pytest.mark.parametrize("changed", ["template", "validation"])
def test_a_checkpoint_of_another_template_or_validation_is_refused(
    tokenizer: str, jsonl: Callable[..., Path], tmp_path: Path, changed: str
) -> None:
    template, train, held = tmp_path / "chat.jinja", jsonl("train", DEMONSTRATIONS), jsonl("held", DEMONSTRATIONS)
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def made() -> DemonstrationData:
        data = ready(DemonstrationData(tokenizer, str(train), str(held), batch_size=4, template=str(template)))
        data.train_dataloader()
        return data

    state = made().state_dict()
    made().load_state_dict(state)
    with (template if changed == "template" else held).open("a") as file:
        file.write(" " if changed == "template" else "\n")
    with pytest.raises(UserError, match=rf"--resume: the data differs from what the run began with: [\w ]*{changed}"):
        made().load_state_dict(state)


def test_lineage(tokenizer: str, demonstrations_file: Path) -> None:
    data = ready(DemonstrationData(tokenizer, str(demonstrations_file), batch_size=4))
    digest = hashlib.sha256(demonstrations_file.read_bytes()).hexdigest()
    assert data.data_files() == [{"path": str(demonstrations_file), "sha256": digest, "rows": 16}]


def test_workers_change_nothing(tokenizer: str, demonstrations_file: Path, text_file: Path) -> None:
    def batches(workers: int) -> list[Any]:
        options: dict[str, Any] = {"batch_size": 4, "max_length": 32, "num_workers": workers}
        mix = {"pretraining": str(text_file), "pretraining_fraction": 0.25}
        data = ready(DemonstrationData(tokenizer, str(demonstrations_file), **options, **mix))
        return [batch.input_ids.tolist() for batch in data.train_dataloader()]

    assert batches(0) == batches(2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_goes_to_a_gpu_is_handed_over_in_page_locked_memory(
    tokenizer: str, demonstrations_file: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    locked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor) or tensor)
    data = ready(DemonstrationData(tokenizer, str(demonstrations_file), batch_size=4), device=device)
    batches = [batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]
    tensors = [t for b in batches for t in (b.input_ids, b.attention_mask, b.loss_mask)]
    assert {id(t) for t in tensors if device == "cuda"} == {id(t) for t in locked}


def test_options_that_cannot_be(tokenizer: str) -> None:
    wrong: list[tuple[Any, str, int]] = [
        (DemonstrationData, "batch_size", 0),
        (DemonstrationData, "max_length", 0),
        (DemonstrationData, "seed", -1),
        (DemonstrationData, "num_workers", -1),
        (TextData, "block_size", 0),
        (PromptData, "max_prompt_length", 0),
        (PromptData, "pretraining_per_episode", 0),
        (PromptData, "pretraining_block_size", 0),
    ]
    for kind, option, value in wrong:
        with pytest.raises(UserError, match=f"{option}: found {value}"):
            kind(tokenizer, "x", **{option: value})
    with pytest.raises(UserError, match="validation_fraction: found 5"):
        DemonstrationData(tokenizer, "x", validation_fraction=5)
    with pytest.raises(UserError, match="train: no such file"):
        ready(DemonstrationData(tokenizer, "missing/x.jsonl"))


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a", "a"),
        ({"path": "a", "weight": 2}, Source("a", 2.0)),
        (["a", {"path": "b", "split": "test"}], ["a", Source("b", split="test")]),
    ],
)
def test_sources_in_a_config(tmp_path: Path, train: Any, expected: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    init = {"tokenizer": "t", "train": train}
    config = {"data": {"class_path": "instructlit.data.DemonstrationData", "init_args": init}}
    data = parser.instantiate(parser.parse_string(json.dumps(config))).data
    assert data.options.train == expected


class Seen(pl.LightningModule):
    """Notes the prompts and the text ids of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.seen: list[Any] = []
        self.validated: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.seen.append(([p.prompt for p in batch["prompts"].prompts], batch["pretraining"].input_ids.tolist()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += [p.prompt for p in batch.prompts]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """A checkpoint after so many batches, or at the end of the epoch they make."""

    def __init__(self, batches: int, path: Path, epoch_end: bool) -> None:
        self.batches, self.path, self.epoch_end = batches, path, epoch_end

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if len(module.seen) == self.batches and not self.epoch_end:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if len(module.seen) == self.batches and self.epoch_end:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [{"max_steps": 8}, {"max_epochs": 3}], ids=["steps", "epochs"])
@pytest.mark.parametrize(("stop", "epoch_end", "workers"), [(3, False, 0), (3, True, 0), (5, False, 0), (5, False, 2)])
def test_a_run_continues_with_the_batches_it_would_have_had(
    tmp_path: Path,
    tokenizer: str,
    prompts_file: Path,
    text_file: Path,
    length: dict[str, int],
    stop: int,
    epoch_end: bool,
    workers: int,
) -> None:
    """Prompts and text, an epoch of 3 rollouts: stopped at the last batch of the first, at its end, in the second."""

    def fit(resume: Path | None, callbacks: list[Callback], num_workers: int) -> Seen:
        data = PromptData(
            tokenizer,
            str(prompts_file),
            batch_size=4,
            pretraining=str(text_file),
            pretraining_per_episode=1,
            pretraining_block_size=8,
            num_workers=num_workers,
        )
        module = Seen()
        options: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            **length,
        }
        trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **options)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return module

    straight = fit(None, [], 0)
    fit(None, [SaveAt(stop, tmp_path / "c.ckpt", epoch_end)], workers)
    resumed = fit(tmp_path / "c.ckpt", [], workers)
    assert len(straight.seen) == (8 if "max_steps" in length else 9)
    assert resumed.seen == straight.seen[stop:]
    assert straight.seen[0] != straight.seen[3]
    assert straight.validated


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_validation(tokenizer: str, prompts_file: Path, text_file: Path) -> None:
    options: dict[str, Any] = {"pretraining": str(text_file), "pretraining_block_size": 8}
    data = PromptData(tokenizer, str(prompts_file), batch_size=4, validation_fraction=0, **options)
    module = Seen()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", enable_model_summary=False, max_steps=2, **quiet).fit(module, data)
    assert len(module.seen) == 2
    assert module.validated == []


def test_a_position_that_is_restored_after_the_loader_was_made_moves_it(
    tokenizer: str, jsonl: Callable[..., Path]
) -> None:
    path = jsonl("many", [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(12)])

    def data() -> DemonstrationData:
        module = DemonstrationData(tokenizer, str(path), batch_size=3, validation_fraction=0.0)
        module.setup("fit")
        return module

    first, late = data(), data()
    batches = iter(first.train_dataloader())
    next(batches)
    loader = late.train_dataloader()
    iterator = iter(loader)  # as Lightning does to count the batches
    late.load_state_dict(first.state_dict())
    assert torch.equal(next(iterator).input_ids, next(batches).input_ids)


def test_lightning_moves_the_tensors_of_a_batch_and_leaves_its_records(tokenizer: str, prompts_file: Path) -> None:
    data = ready(PromptData(tokenizer, str(prompts_file), batch_size=4))
    batch = next(iter(data.train_dataloader()["prompts"]))
    moved = data.transfer_batch_to_device({"prompts": batch}, torch.device("meta"), 0)["prompts"]
    assert {moved.input_ids.device.type, moved.attention_mask.device.type} == {"meta"}
    assert moved.prompts == batch.prompts
