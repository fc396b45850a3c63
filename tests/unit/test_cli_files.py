"""Inputs that are plainly local and are not there; what may be a name on the Hub is left to those who load it."""

from pathlib import Path

import pytest
import torch

from instructlit.cli.config import Config
from instructlit.cli.files import check_checkpoint, check_files, check_input
from instructlit.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demonstrations.jsonl").write_text("")
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "value",
    [
        "data/demonstrations.jsonl",
        "models/base",
        "data/*.jsonl",
        "Qwen/Qwen3-0.6B-Base",
        "gpt2",
        "hf://datasets/x/y.parquet",
        "./models/base",
        "",
    ],
)
def test_what_is_there_or_may_be_elsewhere_passes(value: str) -> None:
    check_input(value, "x")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("data/demonstration.jsonl", "did you mean data/demonstrations.jsonl?"),
        ("models/bse", "did you mean models/base?"),
        ("demonstrations.jsonl", "there is no file or folder `demonstrations.jsonl`"),
        ("./models/other", "there is no file or folder `./models/other`"),
        ("/no/such/place", "there is no folder `/no/such`"),
        ("dta/demonstrations.jsonl", "there is no folder `dta`"),
    ],
)
def test_what_is_plainly_local_and_missing(value: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_input(value, "here")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here: ")


def test_a_file_is_meant_by_its_name_and_not_by_its_ending_nor_where_it_is_named_already(folder: Path) -> None:
    for name, others, meant in (
        ("data/demonstrators.jsonl", [], "data/demonstrations.jsonl"),
        ("data/demonstration.json", [], "data/demonstrations.jsonl"),
        ("data/demonstrators.jsonl", ["data/demonstrations.jsonl"], None),
        ("data/missing.jsonl", [], None),
        ("data/d.jsonl", [], None),
    ):
        with pytest.raises(UserError) as caught:
            check_input(name, "here", others)
        assert caught.value.expected == (f"did you mean {meant}?" if meant else None)
    config = Config({"data": {"init_args": {"train": "data/demonstrations.jsonl"}}})
    with pytest.raises(UserError) as caught:
        check_files(config, [("data.validation", "data/demonstrations_validation.jsonl")])
    assert caught.value.expected is None


CONFIG = Config(
    {
        "model": {"class_path": "a.B", "init_args": {"policy": {"path": "models/bse"}, "note": "models/bse"}},
        "data": {"init_args": {"train": ["data/demonstrations.jsonl", {"path": "data/demonstrations.jsonl"}]}},
        "trainer": {"default_root_dir": "models/bse"},
    },
    {("model", "init_args", "policy", "path"): "a.yaml:7"},
)


def test_the_config_is_walked_and_the_place_told() -> None:
    with pytest.raises(UserError, match=r"a\.yaml:7: model\.init_args\.policy\.path: there is no"):
        check_files(CONFIG, [])


def test_the_line_goes_over_the_config() -> None:
    check_files(CONFIG, [("model.policy.path", "models/base")])
    check_files(CONFIG, [("model.init_args.policy.path", "models/base"), ("data.train", "[a, b]")])
    with pytest.raises(UserError, match=r"--data\.train: there is no"):
        check_files(CONFIG, [("model.policy.path", "models/base"), ("data.train", "data/x.jsonl")])


def test_a_list_names_its_element_unless_the_line_goes_over_it() -> None:
    config = Config({"data": {"train": ["data/demonstrations.jsonl", {"path": "data/x.jsonl"}]}})
    with pytest.raises(UserError, match=r"data\.train\.1\.path"):
        check_files(config, [])
    check_files(config, [("data.init_args.train", "null")])


def test_checkpoints(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "x.ckpt")
    for path in (None, "last", "hpc", "registry:x", "s3://x/y.ckpt", str(tmp_path / "x.ckpt")):
        check_checkpoint(path)
    with pytest.raises(UserError, match="did you mean last"):
        check_checkpoint("lst")
    with pytest.raises(UserError, match="known only to the process"):
        check_checkpoint("best")


def test_the_folder_of_a_resume_checkpoint_stands_for_its_state(tmp_path: Path) -> None:
    folder = tmp_path / "batch-00000004"
    (folder / "state.ckpt").mkdir(parents=True)
    (folder / "state.ckpt" / "meta.pt").touch()
    (folder / "manifest.json").touch()
    with pytest.raises(UserError, match="is a checkpoint of a sharded run"):
        check_checkpoint(str(folder))


def test_a_sharded_checkpoint_wants_a_strategy_that_cuts(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt" / "meta.pt").touch()
    check_checkpoint(str(tmp_path / "last.ckpt"), "instructlit.modules.FSDP2Strategy")
    for strategy in (None, "ddp"):
        with pytest.raises(UserError, match="is a checkpoint of a sharded run"):
            check_checkpoint(str(tmp_path / "last.ckpt"), strategy)
