"""Every real file that is at hand reads, row by row and as a datamodule. None of it is part of the project."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from instructlit.data import ComparisonData, DemonstrationData, PromptData, TextData
from instructlit.data.formats import detect_kind, read_records
from instructlit.data.readers import open_source
from instructlit.data.sources import Source

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

FILES = [  # file, kind, form, rows, records
    ("formats/alpaca_demonstrations.json", "demonstration", "alpaca", 300, 300),
    ("formats/sharegpt_pairs.json", "comparison", "sharegpt", 150, 150),
    ("formats/oasst_trees_10.jsonl", "comparison", "oasst", 10, 18),
    ("formats/oasst_trees_10.jsonl", "demonstration", "oasst", 10, 27),
    ("formats/oasst_trees_10.jsonl", "prompt", "oasst", 10, 46),
    ("real/demonstrations.jsonl", "demonstration", "native", 2700, 2700),
    ("real/comparisons_human.jsonl", "comparison", "native", 160, 160),
    ("real/comparisons_judged.jsonl", "comparison", "native", 605, 605),
    ("real/prompts.jsonl", "prompt", "native", 859, 859),
    ("real/pretraining_text.jsonl", "text", "native", 22, 22),
]


@pytest.mark.parametrize(("name", "kind", "form", "rows", "records"), FILES)
def test_every_row_reads(name: str, kind: Any, form: str, rows: int, records: int) -> None:
    (file,) = open_source(Source(str(DATA / name)), "train")
    found = [read_records(file[i], file.where(i), kind) for i in range(len(file))]
    assert len(found) == rows
    assert Counter(f for f, _ in found) == {form: rows}
    assert sum(len(r) for _, r in found) == records
    if kind != "demonstration" or form != "oasst":
        assert detect_kind(file[0]) in (kind, "comparison")


def test_no_file_was_forgotten() -> None:
    files = {f"{p.parent.name}/{p.name}" for folder in ("formats", "real") for p in (DATA / folder).iterdir()}
    assert files == {name for name, *_ in FILES}


@pytest.mark.parametrize("name", ["comparisons_human", "comparisons_judged"])
def test_ranks_are_those_of_the_file(name: str) -> None:
    path = DATA / "real" / f"{name}.jsonl"
    (file,) = open_source(Source(str(path)), "train")
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        (record,) = read_records(file[i], file.where(i), "comparison")[1]
        assert vars(record)["ranks"] == row["ranks"]
        assert vars(record)["completions"] == row["completions"]


@pytest.mark.parametrize(
    ("kind", "names", "options"),
    [
        (DemonstrationData, ["real/demonstrations.jsonl", "formats/alpaca_demonstrations.json"], {"max_length": 1024}),
        (ComparisonData, ["formats/sharegpt_pairs.json", "formats/oasst_trees_10.jsonl"], {"max_length": 4096}),
        (PromptData, ["real/prompts.jsonl"], {"max_prompt_length": 512, "filter_personal_data": True}),
        (TextData, ["real/pretraining_text.jsonl"], {"block_size": 4096}),
    ],
    ids=["demonstrations", "comparisons", "prompts", "text"],
)
def test_real_files_make_batches(
    kind: Any, names: list[str], options: dict[str, Any], char_tokenizer_dir: Path
) -> None:
    if kind is not TextData:
        options = {**options, "max_dropped_fraction": 0.5}
    data = kind(str(char_tokenizer_dir), [str(DATA / name) for name in names], batch_size=4, **options)
    data.setup()
    loader = data.train_dataloader()
    batch = next(iter(loader["prompts"] if isinstance(loader, dict) else loader))
    assert len(batch) == 4
    assert batch.attention_mask.any(dim=1).all()
    assert len(data.val_dataloader()) >= 1
    train, validation = data.report.splits[:2]
    assert train.kept + validation.kept + train.dropped.total() == train.records or kind is TextData
