"""Ids that are kept: made once for the same files, tokenizer, template and limits, and never taken for others."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from transformers import AutoTokenizer

from instructlit.data import ComparisonData, DemonstrationData, Encoder, PromptData, Source, TextData
from instructlit.data.cache import cache_folder, kept
from instructlit.data.datamodule import DataModule
from instructlit.data.store import Store, Writer
from instructlit.data.tokenization import Encoded
from instructlit.errors import UserError

ROWS: dict[str, list[dict[str, Any]]] = {
    "demonstration": [{"prompt": f"p{n}: ", "completion": "x" * (n % 7), "weight": 1 + n % 2} for n in range(24)],
    "comparison": [
        {"prompt": f"q{n}: ", "completions": ["a" * n, "b", "c"], "ranks": [1, 2, 2 + n % 2], "labeler": f"l{n % 3}"}
        for n in range(24)
    ],
    "prompt": [{"prompt": f"prompt {n % 20}", "user": f"u{n % 4}"} for n in range(24)],
    "text": [{"text": f"text number {n}" * (n % 3)} for n in range(24)],
}
KINDS: dict[str, Callable[..., DataModule]] = {
    "demonstration": lambda *a, **k: DemonstrationData(*a, max_length=16, **k),
    "comparison": lambda *a, **k: ComparisonData(*a, max_length=16, **k),
    "prompt": lambda *a, **k: PromptData(*a, filter_personal_data=True, template="turns", **k),
    "text": lambda *a, **k: TextData(*a, block_size=8, **k),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTRUCTLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that were tokenised, in order; not those of the first prompts, which every start looks at."""
    seen: list[str] = []
    monkeypatch.setattr("instructlit.data.datamodule._LOOKED_AT", 0)

    class Counted(Encoder):
        def example(self, prompt: Any, completion: str, ended: bool = True) -> Any:
            seen.append(completion)
            return super().example(prompt, completion, ended)

        def prompt(self, prompt: Any) -> list[int]:
            seen.append(str(prompt))
            return super().prompt(prompt)

        def document(self, text: str) -> list[int]:
            seen.append(text)
            return super().document(text)

    monkeypatch.setattr("instructlit.data.datamodule.Encoder", Counted)
    return seen


def written(path: Path, kind: str) -> Path:
    write_jsonl(path, ROWS[kind])
    return path


def ready(kind: str, tokenizer: Path, path: Path, **options: Any) -> DataModule:
    data = KINDS[kind](str(tokenizer), str(path), batch_size=4, validation_fraction=0.25, **options)
    data.setup()
    return data


def batches(data: DataModule) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader = loader["prompts"] if isinstance(loader, dict) else loader
    return [batch.input_ids for batch in loader]


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ROWS)
def test_a_second_start_tokenises_nothing_and_trains_on_the_same(
    kind: str, tmp_path: Path, tiny_llama_dir: Path, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "d.jsonl", kind)
    first = ready(kind, tiny_llama_dir, path)
    made = batches(first)
    assert encodings
    encodings.clear()
    second = ready(kind, tiny_llama_dir, Path(shutil.copy(path, tmp_path / "elsewhere.jsonl")))
    found = batches(second)
    assert not encodings
    monkeypatch.setenv("INSTRUCTLIT_CACHE", "off")
    plain = batches(third := ready(kind, tiny_llama_dir, path))
    assert encodings
    for one, two, three in zip(made, found, plain, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert first.report.as_dict() == second.report.as_dict() == third.report.as_dict()
    assert second.splits["train"].fingerprint == third.splits["train"].fingerprint
    assert second.splits["train"].dataset.where(3).replace("elsewhere", "d") == first.splits["train"].dataset.where(3)


def test_what_is_kept_of_a_record_is_what_the_encoder_makes_of_it(tmp_path: Path, tiny_llama_dir: Path) -> None:
    for _ in range(2):
        for kind in ("demonstration", "comparison", "prompt"):
            data = ready(kind, tiny_llama_dir, written(tmp_path / f"{kind}.jsonl", kind))
            dataset = data.splits["train"].dataset
            for i, row in enumerate(ROWS[kind]):
                answers = row.get("completions", [row.get("completion")])
                expected = [data.encoder.example(row["prompt"], answer) for answer in answers if answer is not None]
                found = dataset.scanned.sequences(i)
                assert found == (expected or [Encoded(data.encoder.prompt(row["prompt"]), 0)])
                assert dataset.scanned.tokens[i] == sum(len(one.ids) for one in found)


def test_ids_are_tokenised_once_in_a_run_however_many_epochs(
    tmp_path: Path, tiny_llama_dir: Path, encodings: list[str]
) -> None:
    data = ready("comparison", tiny_llama_dir, written(tmp_path / "d.jsonl", "comparison"))
    assert len(encodings) == 3 * 24
    for _ in range(3):
        batches(data)
    assert len(encodings) == 3 * 24


@pytest.mark.parametrize(
    "other", ["content", "max_length", "max_prompt_length", "template", "tokenizer", "format", "code"]
)
def test_other_content_tokenizer_template_or_limits_are_tokenised_anew(
    other: str, tmp_path: Path, tiny_llama_dir: Path, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder, options = written(tmp_path / "d.jsonl", "demonstration"), tiny_llama_dir, {}

    def start() -> DataModule:
        data = DemonstrationData(str(folder), options.pop("train", str(path)), **{"max_length": 64, **options})
        data.setup()
        return data

    start()
    encodings.clear()
    start()
    assert not encodings
    if other == "content":
        path.write_text(path.read_text().replace("p7", "p8"))
    elif other == "tokenizer":
        folder = tmp_path / "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
        tokenizer.add_tokens(["xx"])
        tokenizer.save_pretrained(folder)
    elif other == "format":
        options["train"] = Source(str(path), format="native")
    elif other == "code":
        monkeypatch.setattr("instructlit.data.cache._code", lambda: "another release")
    else:
        options[other] = {"max_length": 63, "max_prompt_length": 31, "template": "turns"}[other]
    start()
    assert len(encodings) == 24


@pytest.mark.parametrize("how", ["shorter", "other bytes", "gone", "manifest", "no manifest"])
def test_a_damaged_entry_is_told_and_made_anew(
    how: str, tmp_path: Path, tiny_llama_dir: Path, folder: Path, encodings: list[str]
) -> None:
    path = written(tmp_path / "d.jsonl", "demonstration")
    made = batches(ready("demonstration", tiny_llama_dir, path))
    (entry,) = entries(folder)
    ids, manifest = entry / "ids.bin", entry / "manifest.json"
    content = bytearray(ids.read_bytes())
    if how == "shorter":
        ids.write_bytes(content[:-4])
    elif how == "other bytes":
        content[8] ^= 1
        ids.write_bytes(content)
    elif how == "gone":
        ids.unlink()
    elif how == "manifest":
        manifest.write_text('{"tables": []}')
    else:
        manifest.unlink()
    encodings.clear()
    with pytest.warns(UserWarning, match="damaged and are made again"):
        again = batches(ready("demonstration", tiny_llama_dir, path))
    assert len(encodings) == 24
    assert all(torch.equal(one, two) for one, two in zip(made, again, strict=True))
    encodings.clear()
    ready("demonstration", tiny_llama_dir, path)
    assert not encodings


def test_nothing_is_kept_of_a_file_with_a_wrong_row(tmp_path: Path, tiny_llama_dir: Path, folder: Path) -> None:
    path = written(tmp_path / "d.jsonl", "demonstration")
    with path.open("a") as file:
        file.write('{"prompt": "p"}\n')
    for _ in range(2):
        with pytest.raises(UserError, match="completion"):
            ready("demonstration", tiny_llama_dir, path)
    assert not entries(folder)


def test_where_nothing_can_be_kept_the_run_goes_on(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INSTRUCTLIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot cache the token ids in .*file"):
        data = ready("demonstration", tiny_llama_dir, written(tmp_path / "d.jsonl", "demonstration"))
    assert batches(data)


def test_nothing_is_kept_of_code_or_templates_that_may_say_something_else_next_time(
    tmp_path: Path, tiny_llama_dir: Path, folder: Path
) -> None:
    class Own(DemonstrationData):
        def measure(self, record: Any, sequences: Any) -> Any:
            return super().measure(record, sequences)

    path = str(written(tmp_path / "d.jsonl", "demonstration"))
    Own(str(tiny_llama_dir), path, max_length=16).setup()
    dated = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    DemonstrationData(str(tiny_llama_dir), path, max_length=32, max_dropped_fraction=1.0, template=dated).setup()
    assert not folder.exists()


def test_of_several_at_once_one_makes_it(folder: Path) -> None:
    made: list[str] = []

    def fill(writer: Writer) -> dict[str, Any]:
        made.append("x")
        writer.table("t").add(np.arange(1000, dtype="<i4").tobytes())
        return {"a": 1}

    (folder / "key.left").mkdir(parents=True)  # by somebody who was killed
    threads = [threading.Thread(target=lambda: kept("key", fill, "t")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = kept("key", fill, "t")
    assert made == ["x"]
    assert store.table("t", "<i4").sum() == 999 * 500
    assert store.facts == {"a": 1}
    assert [path.name for path in entries(folder)] == ["key"]
    assert Store(folder / "key").size == 4000


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for told, expected in {
        "": "/home/anna/.cache/instructlit/tokens",
        "~/ids": "/home/anna/ids/tokens",
        "off": None,
        "0": None,
    }.items():
        monkeypatch.setenv("INSTRUCTLIT_CACHE", told)
        assert cache_folder() == (Path(expected) if expected else None)
    monkeypatch.setenv("INSTRUCTLIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/anna")
    assert cache_folder() == Path("/scratch/anna/instructlit/tokens")
