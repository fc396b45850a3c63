"""Checkpoint folders: whole or not there, and what is said of those that cannot be used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructlit import checkpoints as c
from instructlit.cli.files import check_checkpoint
from instructlit.errors import UserError


def write(folder: Path, batch: int, stage: str = "sft", sharded: bool = False) -> Path:
    target = c.partial(folder, batch)
    target.mkdir(parents=True)
    weights = torch.arange(1000.0) + batch
    if sharded:  # as the strategy leaves it: what is not cut, and files of many archives in a row
        (target / c.STATE).mkdir()
        torch.save({"step": batch}, target / c.STATE / "meta.pt")
        (target / c.STATE / "__0_0.distcp").write_bytes(weights.numpy().tobytes())
    else:
        torch.save({"weights": weights}, target / c.STATE)
    return c.publish(target, c.Manifest(stage, batch, {"seed": 1}, [None]))


def test_the_newest_whole_one_is_found_and_older_ones_go(tmp_path: Path) -> None:
    for batch in (2, 10, 4):
        write(tmp_path, batch)
    assert c.newest(tmp_path, "sft") == (tmp_path / "batch-00000010", [])
    c.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch-00000004", "batch-00000010"]
    assert c.read_manifest(tmp_path / "batch-00000010").run == {"seed": 1}


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (c.partial(tmp_path, 4)).mkdir()
    (c.partial(tmp_path, 4) / c.STATE).write_text("half")
    assert c.newest(tmp_path, "sft") == (tmp_path / "batch-00000002", [])
    c.clear_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["batch-00000002"]


def test_one_is_replaced_by_the_same_batch_of_a_later_process(tmp_path: Path) -> None:
    write(tmp_path, 2)
    again = write(tmp_path, 2)
    assert c.newest(tmp_path, "sft") == (again, [])
    assert len(list(tmp_path.iterdir())) == 1


def spoil(path: Path, how: str) -> None:
    state, manifest = path / c.STATE, path / c.MANIFEST
    data = bytearray(state.read_bytes())
    if how == "truncated":
        state.write_bytes(data[:-7])
    elif how == "damaged":
        at = data.index(torch.arange(1000.0).add(9)[500:].numpy().tobytes()[:16])
        data[at] ^= 1
        state.write_bytes(data)
    elif how == "gone":
        state.unlink()
    elif how == "foreign":
        manifest.unlink()
    elif how == "nonsense":
        manifest.write_text("{")
    elif how == "later format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "state.ckpt has"),
        ("damaged", "state.ckpt is damaged: its checksum"),
        ("gone", "state.ckpt is missing"),
        ("foreign", "it has no manifest.json, so it was not written by instructlit"),
        ("nonsense", "its manifest.json cannot be read"),
        ("later format", "it is of format 99, this version reads 3"),
    ],
)
def test_one_that_cannot_be_used_is_named_and_skipped(tmp_path: Path, how: str, said: str) -> None:
    write(tmp_path, 8)
    spoil(write(tmp_path, 9), how)
    found, skipped = c.newest(tmp_path, "sft")
    assert found == tmp_path / "batch-00000008"
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{tmp_path / 'batch-00000009'} is skipped: {said}")


@pytest.mark.parametrize("name", ["meta.pt", "__0_0.distcp"])
def test_a_byte_that_changed_in_a_shard_is_noticed(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, 9, sharded=True) / c.STATE / name
    assert c.newest(tmp_path, "sft") == (tmp_path / "batch-00000009", [])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found, skipped = c.newest(tmp_path, "sft")
    assert found is None
    assert f"{c.STATE}/{name} is damaged" in skipped[0]
    with pytest.raises(UserError, match=rf"--ckpt_path: .*{name} is damaged"):
        check_checkpoint(str(tmp_path / "batch-00000009"), "instructlit.modules.FSDP2Strategy")


def test_a_checkpoint_that_is_named_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 9)
    for path in (folder, folder / c.STATE):
        check_checkpoint(str(path))
    spoil(folder, "damaged")
    for path in (folder, folder / c.STATE):
        with pytest.raises(UserError, match=r"--ckpt_path: .*state.ckpt is damaged"):
            check_checkpoint(str(path))
    lone = tmp_path / "last.ckpt"  # of a ModelCheckpoint, which writes no manifest
    torch.save({"weights": torch.arange(1000.0)}, lone)
    check_checkpoint(str(lone))
    lone.write_bytes(lone.read_bytes()[:-7])
    with pytest.raises(UserError, match="is truncated"):
        check_checkpoint(str(lone))
    shards = write(tmp_path, 10, sharded=True)
    (shards / c.MANIFEST).unlink()
    c.check_whole(shards / c.STATE, "--ckpt_path")


@pytest.mark.parametrize("sharded", [False, True])
def test_all_of_one_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(c, "_sync", synced.append)
    final = write(tmp_path, 2, sharded=sharded)
    parts = [final, *final.rglob("*")]
    written = c.partial(tmp_path, 2)
    assert synced[-1] == tmp_path, "the name too"
    assert sorted(synced[:-1]) == sorted(written / part.relative_to(final) for part in parts)
    c.mark_finished(tmp_path, c.read_manifest(final))
    assert synced[-2:] == [tmp_path / f"{c.PARTIAL}{c.FINISHED}", tmp_path]


def test_one_of_another_stage_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, 9, stage="reward")
    found, skipped = c.newest(tmp_path, "sft")
    assert found is None
    assert "it is of stage reward, this run is sft" in skipped[0]


def test_what_lies_behind_the_beginning_of_a_run_is_put_aside_under_a_free_name(tmp_path: Path) -> None:
    folder = tmp_path / "resume"
    for number, after in ((1, 4), (2, 0)):
        for batch in (4, 8, 12):
            write(folder, batch)
        c.mark_finished(folder, c.Manifest("sft", 12, {}, []))
        assert c.put_aside(folder, after) == tmp_path / f"resume-earlier-{number}"
        assert not c.finished(folder)
    assert [path.name for path in c.checkpoints(tmp_path / "resume-earlier-1")] == ["batch-00000012", "batch-00000008"]
    assert c.checkpoints(folder) == []
    assert c.put_aside(folder) is None


def test_a_folder_is_one_process_s_until_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "LOCK_SECONDS", 0.0)
    program = (
        "import sys, time; from pathlib import Path; from instructlit.checkpoints import claim\n"
        "kept = claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(UserError, match=f"another run is using it: process {other.pid} on "):
                c.claim(tmp_path)
        other.kill()
    c.claim(tmp_path).release()
    c.claim(tmp_path).release()
