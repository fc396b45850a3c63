"""A run whose device's memory is full, from the command line: one message, the table, and what helps most."""

import json
from pathlib import Path

import pytest
import torch

from instructlit.cli import main
from instructlit.modules import SFTModule


class Full(SFTModule):
    """A module for which there is no room, wherever it is tried."""

    def configure_model(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_message_ends_with_the_table_and_two_settings(
    tiny_llama_dir: Path,
    demonstrations_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": f"{Full.__module__}.Full",
            "init_args": {"policy": {"path": str(tiny_llama_dir)}},
        },
        "data": {
            "class_path": "instructlit.data.DemonstrationData",
            "init_args": {
                "tokenizer": str(tiny_llama_dir), "train": str(demonstrations_file), "batch_size": 8, "max_length": 64,
                "validation_fraction": 0.2,
            },
        },
        "trainer": {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False},
    }  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(config))
    assert main(["fit", "--config", str(tmp_path / "r.json")]) == 2
    message = capsys.readouterr().err
    assert "the device's memory is full: CUDA out of memory. Tried to allocate 2.00 GiB" in message
    assert "optimiser state" in message
    assert "forward and backward" in message
    assert "Traceback" not in message
    settings = message[message.index("these settings save the most") :].splitlines()[1:]
    assert [("->" in line) for line in settings] == [True, True]
