"""Data files that change or go while a run reads them: the rows counted at the start, or a message; never others."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from conftest import write_jsonl
from lightning.pytorch.callbacks import ModelCheckpoint
from stage_helpers import sft_module, trainer

from instructlit.data import DemonstrationData, TextData
from instructlit.data.readers import open_source
from instructlit.data.rows import Rows, file_hash
from instructlit.data.sources import Source
from instructlit.data.store import Table
from instructlit.errors import UserError

ROWS = [{"prompt": f"p{n}: ", "completion": "x" * (n + 1)} for n in range(12)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """In place: the same file with other bytes."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def opened(path: Path) -> Rows:
    (rows,) = open_source(Source(str(path)), "train")
    return rows


def test_a_longer_or_shorter_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")
    rows, size = opened(path), path.stat().st_size
    assert rows[3] == ROWS[3]
    write(path, ROWS[5:] + ROWS)  # every offset is now within another row
    with pytest.raises(UserError, match=f"has {path.stat().st_size:,} bytes and had {size:,}") as caught:
        rows[3]
    assert caught.value.where == str(path)


def test_a_file_of_the_same_size_with_other_rows_is_no_other_data(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")
    rows = opened(path)
    assert rows[0]["completion"] == "x"
    write(path, [row | {"completion": "y" * len(row["completion"])} for row in ROWS])
    with pytest.raises(UserError, match="the same size, but different content"):
        rows[0]


def test_a_file_that_was_only_touched_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")
    rows = opened(path)
    os.utime(path, ns=(1, 1))
    assert [rows[i] for i in range(12)] == ROWS
    write(path)  # the same bytes again
    assert rows[5] == ROWS[5]


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_who_has_the_file_open_goes_on_and_who_opens_it_later_is_told(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "d.jsonl")
    rows = opened(path)
    assert rows[0] == ROWS[0]
    if how == "removed":
        path.unlink()
    else:
        write(tmp_path / "new", ROWS[::-1]).replace(path)
    with pytest.warns(UserWarning, match="was removed or replaced while the run was reading it"):
        assert [rows[i] for i in range(12)] == ROWS
    worker = pickle.loads(pickle.dumps(rows))
    with pytest.raises(UserError, match="can no longer be opened" if how == "removed" else "was replaced by another"):
        worker[0]


def test_an_exact_copy_in_its_place_will_do(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")
    rows = opened(path)
    write(tmp_path / "new").replace(path)
    assert pickle.loads(pickle.dumps(rows))[2] == ROWS[2]


def test_a_folder_of_datasets_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    rows = opened(tmp_path / "folder")
    assert rows[1] == ROWS[1]
    (arrow,) = (tmp_path / "folder").glob("*.arrow")
    monkeypatch.setattr("instructlit.data.unchanged._EVERY_SECONDS", 0.0)
    with arrow.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"more")
    with pytest.raises(UserError, match=r"\.arrow: the file was changed while the run was reading it"):
        rows[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_the_record_holds_what_was_read_whatever_became_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    text = {".json": json.dumps(ROWS), ".csv": "prompt,completion\n" + "".join(f"p{n},x\n" for n in range(12))}
    path.write_text(text.get(suffix, "".join(json.dumps(row) + "\n" for row in ROWS)))
    before, rows = file_hash(str(path)), opened(path)
    path.unlink()
    assert rows.sha256() == before
    assert str(path) in rows.where(3)


class Overwrites(pl.Callback):
    """Somebody makes the data anew while it is in use."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 2:
            write(self.path, ROWS[::-1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_with_one_message_and_keeps_what_it_learnt(
    tmp_path: Path, tiny_llama_dir: Path, workers: int
) -> None:
    path = write(tmp_path / "d.jsonl", ROWS * 20)
    data = DemonstrationData(str(tiny_llama_dir), str(path), batch_size=2, validation_fraction=0, num_workers=workers)
    callbacks = [Overwrites(path), ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)]
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True).fit(
            sft_module(tiny_llama_dir), datamodule=data
        )
    assert caught.value.where == str(path)
    assert "Traceback" not in str(caught.value)
    assert (tmp_path / "ckpt" / "failed.ckpt").is_file()
    assert data.data_files()[0]["rows"] == 240


def test_ids_of_a_text_whose_temporary_file_cannot_be_written_or_is_gone(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: Table) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "t.jsonl"
    write_jsonl(path, ({"text": f"text {n}"} for n in range(8)))
    data = TextData(str(tiny_llama_dir), str(path), batch_size=2, block_size=8, validation_fraction=0)
    with monkeypatch.context() as patch:
        patch.setattr(Table, "_flush", full)
        with pytest.raises(UserError, match=r"No space left on device\n.*\n.*TMPDIR"):
            data.setup()
    data.setup()
    rows = data.splits["train"].dataset
    first = rows[0].ids
    for file in rows.files[0]._store.folder.glob("*.bin"):
        file.unlink()
    assert rows[0].ids == first  # mapped already
    with pytest.raises(UserError, match="TMPDIR"):
        pickle.loads(pickle.dumps(rows))[0]
