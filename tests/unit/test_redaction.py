"""Secrets stay out of what is written; what only sounds like one stays in."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

from instructlit.callbacks.save_config import run_folder, writable, write_numbered
from instructlit.redaction import REMOVED, without_secrets, words_without_secrets


def test_what_is_called_a_secret_goes() -> None:
    config = {
        "api_key": "abc",
        "wandb": {"init_args": {"settings": {"api_key": "abc", "entity": "me"}, "WANDB_API_KEY": "abc"}},
        "list": [{"password": "x"}, {"hf_token": "x"}, "plain"],
        "auth": "x",
        "headers": {"Authorization": "x", "X-Api-Key": "x"},
        "api_keys": ["x", "y"],
        "passphrase": 1234,
    }
    assert without_secrets(config) == {
        "api_key": REMOVED,
        "wandb": {"init_args": {"settings": {"api_key": REMOVED, "entity": "me"}, "WANDB_API_KEY": REMOVED}},
        "list": [{"password": REMOVED}, {"hf_token": REMOVED}, "plain"],
        "auth": REMOVED,
        "headers": {"Authorization": REMOVED, "X-Api-Key": REMOVED},
        "api_keys": REMOVED,
        "passphrase": REMOVED,
    }


def test_what_only_sounds_like_one_stays() -> None:
    config = {
        "tokenizer": "models/base",
        "padding_token": "<pad>",
        "eos_token": "</s>",
        "max_new_tokens": 32,
        "pretraining_key": None,
        "monitor": "sft/val/loss",
        "token": None,
        "token_key": 3,
        "keys": ["a"],
        "stop_tokens": ["</s>"],
    }
    assert without_secrets(config) == config


def test_what_looks_like_one_goes_wherever_it_stands() -> None:
    assert without_secrets({"note": "use hf_abcdefghijklmnopqrstuvwxyz now"}) == {"note": f"use {REMOVED} now"}
    assert without_secrets("https://me:secret@host/x") == f"https://{REMOVED}@host/x"
    assert without_secrets("redis://:secret@host/0") == f"redis://{REMOVED}@host/0"
    assert without_secrets("postgresql://me:se@c/ret@host/x") == f"postgresql://{REMOVED}@host/x"
    assert without_secrets("Bearer abc") == f"Bearer {REMOVED}"
    assert (
        without_secrets("https://host/x?api_key=a&n=1&token=b")
        == f"https://host/x?api_key={REMOVED}&n=1&token={REMOVED}"
    )
    for plain in ("https://host/x", "https://host:8080/users/@me", "https://host/x?monkey=1", "sft/val/loss"):
        assert without_secrets(plain) == plain


def test_a_command_line_is_written_without_them() -> None:
    words = ["fit", "--a.api_key", "x", "--a.token=x", "--a.eos_token", "</s>", "--a.key", "--b.url", "redis://:x@host"]
    assert words_without_secrets(words) == [
        *("fit", "--a.api_key", REMOVED, f"--a.token={REMOVED}", "--a.eos_token", "</s>", "--a.key", "--b.url"),
        f"redis://{REMOVED}@host",
    ]


def test_the_original_is_left_as_it_was() -> None:
    config = {"a": {"api_key": "abc"}, "b": ["hf_abcdefghijklmnopqrstuvwxyz"]}
    without_secrets(config)
    assert config == {"a": {"api_key": "abc"}, "b": ["hf_abcdefghijklmnopqrstuvwxyz"]}


def test_what_could_not_be_written_is_left_out() -> None:
    assert writable({"a": "Unable to serialize instance <x>", "b": [{"c": "Unable to serialize instance <y>"}, 1]}) == {
        "b": [{}, 1]
    }


def test_a_second_run_in_the_folder_keeps_the_first_config(tmp_path: Path) -> None:
    assert write_numbered(tmp_path, "one").name == "config.yaml"
    assert write_numbered(tmp_path, "one").name == "config.yaml"
    assert write_numbered(tmp_path, "two").name == "config-2.yaml"
    assert write_numbered(tmp_path, "two").name == "config-2.yaml"
    assert write_numbered(tmp_path, "one").name == "config-3.yaml"
    assert (tmp_path / "config.yaml").read_text() == "one"


def test_runs_that_share_a_log_folder_get_one_each(tmp_path: Path) -> None:
    assert run_folder(tmp_path, None) == tmp_path
    assert run_folder(tmp_path, CSVLogger(str(tmp_path))) == tmp_path  # its own log_dir is what the trainer reports
    shared = DummyLogger()
    assert shared.log_dir is None
    assert run_folder(tmp_path, shared) == tmp_path / str(shared.name) / str(shared.version)
