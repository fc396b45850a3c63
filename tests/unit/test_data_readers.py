"""Files: what can be read, that reading is lazy, and what is said about files that are not what they should be."""

import csv
import json
import math
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from instructlit.data.json_rows import JsonArray, JsonLines
from instructlit.data.readers import open_source
from instructlit.data.sources import Source, Sources, as_sources
from instructlit.data.tables import Table
from instructlit.errors import UserError

ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "completion": "é\n" * i} for i in range(5)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    import datasets

    table = datasets.Dataset.from_list(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        table.to_parquet(str(path))
    elif path.suffix == ".csv":
        table.to_csv(str(path), index=False)
    else:
        table.save_to_disk(str(path))
    return str(path)


def only(path: str, **options: Any) -> Any:
    (rows,) = open_source(Source(path, **options), "train")
    return rows


@pytest.mark.parametrize(
    ("name", "reader", "last"),
    [
        ("a.jsonl", JsonLines, "a.jsonl:5"),
        ("a.json", JsonArray, "a.json:18 (record 5)"),
        ("a.parquet", Table, "a.parquet: row 5"),
        ("a.csv", Table, "a.csv: row 5"),
        ("folder", Table, "folder: row 5"),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, reader: type, last: str) -> None:
    rows = only(write(tmp_path / name, ROWS))
    assert isinstance(rows, reader)
    assert [rows[i] for i in range(len(rows))] == ROWS
    assert rows[3] == ROWS[3]
    assert rows.where(4).endswith(last)
    assert len(rows.sha256()) == 64


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_another_file_of_the_same_name_and_time_has_rows_of_its_own(tmp_path: Path, name: str) -> None:
    """As `cp -p`, `rsync -t` and images of fixed times make them."""
    for prompt in ("old", "new"):
        path = write(tmp_path / name, [{"prompt": prompt}])
        os.utime(path, (1e9, 1e9))
        assert only(path)[0] == {"prompt": prompt}


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "a.jsonl", ROWS)
    assert only(path).sha256() == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_comparisons_from_csv_and_parquet(tmp_path: Path) -> None:
    """Lists stand in a CSV cell as JSON; text that looks like a number or a gap stays text."""
    rows = [{"prompt": "42", "completions": ["NA", "2"], "ranks": [1, 2], "labeler": "l"}]
    assert only(write(tmp_path / "a.parquet", rows))[0] == rows[0]
    cells = [{name: v if isinstance(v, str) else json.dumps(v) for name, v in rows[0].items()}]
    assert only(write(tmp_path / "a.csv", cells))[0] == rows[0]
    empty = write(tmp_path / "b.csv", [{"prompt": "p", "completion": "", "labeler": ""}])
    assert only(empty)[0] == {"prompt": "p", "completion": ""}


def test_messages_numbers_and_text_in_cells_of_csv(tmp_path: Path) -> None:
    """A cell is a list of messages only where it is one; text may begin with any bracket."""
    user, good, bad = ([{"role": r, "content": c}] for r, c in (("user", "hi"), ("assistant", "g"), ("assistant", "b")))
    texts = ['["b", "a"]: sort this', '["b", "a"]', '[{"id": 1}]']
    rows: list[dict[str, Any]] = [
        {"prompt": user, "chosen": good, "rejected": bad, "weight": 2.0},
        {"prompt": texts[0], "chosen": {"from": "gpt", "value": "g"}, "rejected": "", "weight": 0.5},
        dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)),
        {"prompt": "p", "chosen": "[", "rejected": "{", "weight": "much"},
    ]
    names = ("prompt", "chosen", "rejected", "weight")
    table = [[v if isinstance(v := row.get(name, ""), str) else json.dumps(v) for name in names] for row in rows]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["", *names], *([i, *cells] for i, cells in enumerate(table))])  # as pandas writes
    read = only(str(tmp_path / "a.csv"))
    assert [{name: read[i][name] for name in names if name in read[i]} for i in range(len(read))] == rows


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json"])
def test_fields_that_a_table_fills_in_are_gone_again(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "p", "ratings": [1, 2], "user": "u"}, {"prompt": "q", "ratings": None, "user": None}]
    assert only(write(tmp_path / name, rows))[1] == {"prompt": "q"}


def test_cells_of_a_tsv_keep_their_quotation_marks_and_a_column_may_have_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('\tprompt\tcompletions\n0\tSay "hi\t["42"]\n')
    assert only(str(path))[0] == {"Unnamed: 0": "0", "prompt": 'Say "hi', "completions": ["42"]}


def test_fields_that_arrow_fills_in_are_gone_again(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "user": "u"}, {"prompt": "q", "user": None}]
    assert only(write(tmp_path / "a.parquet", rows))[1] == {"prompt": "q"}


def test_lines_of_a_json_file_and_a_mark_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "p"}\r\n\r\n  \n{"prompt": "q"}')
    rows = only(str(path))
    assert [rows[0], rows[1]] == [{"prompt": "p"}, {"prompt": "q"}]
    assert rows.where(1).endswith("a.json:4")


def test_globs_lists_and_splits(tmp_path: Path) -> None:
    import datasets

    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, ROWS)
    found = open_source(Source(str(tmp_path / "*.jsonl")), "train")
    assert [Path(rows.path).name for rows in found] == ["a.jsonl", "b.jsonl"]
    assert as_sources("x") == [Source("x")]
    assert as_sources(["x", Source("y", 2.0)]) == [Source("x"), Source("y", 2.0)]
    assert as_sources(None) == []
    both = datasets.DatasetDict({n: datasets.Dataset.from_list(ROWS[:k]) for n, k in (("train", 2), ("test", 3))})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(only(str(tmp_path / "both"))) == 2
    assert len(only(str(tmp_path / "both"), split="test")) == 3
    with pytest.raises(UserError, match="no split 'dev'"):
        only(str(tmp_path / "both"), split="dev")


def test_a_split_that_cannot_be_chosen_is_an_error(tmp_path: Path) -> None:
    import datasets

    file, folder = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "folder", ROWS)
    with pytest.raises(UserError, match=r"a\.jsonl: split: found 'test'"):
        only(file, split="test")
    with pytest.raises(UserError, match="folder: subset: found 'en'"):
        only(folder, subset="en")
    with pytest.raises(UserError, match=r"folder: no split 'test'\n  expected: no split: the folder"):
        only(folder, split="test")
    dev = datasets.Dataset.from_list(ROWS, split=datasets.Split("dev"))
    dev.save_to_disk(str(tmp_path / "dev"))
    assert len(only(str(tmp_path / "dev"), split="dev")) == len(ROWS)
    with pytest.raises(UserError, match=r"no split 'test'\n  expected: dev, the only split"):
        only(str(tmp_path / "dev"), split="test")


def test_what_others_put_into_a_folder_is_not_in_its_hash(tmp_path: Path) -> None:
    import datasets

    path = write(tmp_path / "folder", ROWS)
    before = only(path).sha256()
    datasets.load_from_disk(path).map(lambda row: {"n": 1})
    assert len(list(Path(path).glob("*.arrow"))) == 2
    assert only(path).sha256() == before


def test_a_reader_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    rows = only(write(tmp_path / "a.jsonl", ROWS))
    assert rows[1] == ROWS[1]
    assert pickle.loads(pickle.dumps(rows))[2] == ROWS[2]


def read_all(path: str) -> list[Any]:
    return [rows[i] for rows in open_source(Source(path), "train") for i in range(len(rows))]


BROKEN: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", "the file is empty"),
    ("blank.jsonl", b"\n  \n\n", "only blank lines"),
    ("binary.jsonl", bytes(range(256)), "the file is binary"),
    ("wide.jsonl", '{"prompt": "p"}'.encode("utf-16"), "the file is binary"),
    ("latin.jsonl", b'{"prompt": "caf\xe9"}\n', "not UTF-8"),
    ("cut.jsonl", b'{"prompt": "p"}\n{"prompt": "q', "cut.jsonl:2: not JSON"),
    ("list.jsonl", b'["prompt"]\n', "list.jsonl:1: found list"),
    ("cut.json", b'[{"prompt": "p"}, {"prompt": ', "cut.json: not JSON"),
    ("text.json", b'"prompt"', "found str"),
    ("elements.json", b'[{"prompt": "p"},\n"q"]', "elements.json:2 (record 2): found str"),
    ("deep.jsonl", b"[" * 100_000, "nested too deeply"),
    ("twice.jsonl", b'{"prompt": "p", "prompt": null}\n', "twice.jsonl:1: prompt: the field occurs twice"),
    ("turn.json", b'[{"messages": [{"content": "a", "content": "b"}]}]', "content: the field occurs twice"),
    ("long.jsonl", b'{"user": ' + b"1" * 5000 + b"}\n", "long.jsonl:1: a number has too many digits"),
    ("none.json", b"[]\n", "none.json: no rows"),
    ("cut.parquet", b"PAR1 and no more", "cut.parquet: could not be read"),
    ("cut.csv", b'prompt,completion\n"p,c\n', "cut.csv:2: not CSV (unexpected end of data)"),
    ("first.csv", b'prompt,completion\n"a\nb",c,d\ne,f\n', "first.csv:2: found 3 cells under 2 names"),
    ("short.csv", b'prompt,completion\n"a\nb",c\n\ne\n', "short.csv:5: found 1 cells under 2 names"),
    ("none.csv", b"prompt,completion\n", "none.csv: no rows"),
    ("twice.csv", b"prompt,completion,completion\na,b,c\n", "twice.csv:1: the names completion occur twice"),
    ("latin.csv", b"prompt,completion\na,b\ncaf\xe9,c\n", "latin.csv:3: byte 3 is not UTF-8"),
    ("tab.tsv", b"prompt\tcompletion\na\tb\tc\n", ".tsv has no way to hold a tab"),
    ("data.txt", b"text", "has the suffix .txt"),
    ("data.jsonl.gz", b"\x1f\x8b", "has the suffix .gz"),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN, ids=[case[0] for case in BROKEN])
def test_broken_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_all(str(path))
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_a_field_may_be_nested_as_deep_as_json_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"prompt": "p", "meta": ' + "[" * 900 + "]" * 900 + "}\n")
    assert read_all(str(path))[0]["prompt"] == "p"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "demonstrations.jsonl", ROWS)
    with pytest.raises(UserError, match=r"did you mean .*demonstrations.jsonl\?"):
        open_source(Source(str(tmp_path / "demonstration.jsonl")), "train")
    with pytest.raises(UserError, match=r"train: no file matches"):
        open_source(Source(str(tmp_path / "*.csv")), "train")
    with pytest.raises(UserError, match=r"give the files in it: .*\*.jsonl"):
        open_source(Source(str(tmp_path)), "train")


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_out_of_range_is_told_with_its_option(tmp_path: Path, weight: float) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    # As a config is read: among the ways of naming sources a message of the class itself would be lost.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=Sources)
    source = {"path": str(tmp_path / "rows.jsonl"), "weight": weight}
    for given in (source, [source]):
        read: Any = parser.instantiate(parser.parse_object({"train": given}))
        with pytest.raises(UserError, match=rf"^train: source .*rows.jsonl has weight {weight}"):
            open_source(as_sources(read.train)[0], "train")


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"someone/data: could not be read: offline\n.*dataset on the Hub"):
        open_source(Source("someone/data"), "train")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """64 MB of JSON Lines, every row read: what is needed is some chunks of 4 MB, what stays is three numbers a row."""
    path, line = tmp_path / "big.jsonl", json.dumps({"text": "word " * 4000}).encode() + b"\n"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(line * 100)
    tracemalloc.start()
    try:
        rows = only(str(path))
        characters = sum(len(rows[i]["text"]) for i in range(len(rows)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 64_000_000
    assert characters == 3200 * 20_000
    assert peak < 16_000_000
    assert held < 100 * len(rows)
