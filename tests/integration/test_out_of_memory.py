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


class FullCPU(SFTModule):
    """The same on a CPU."""

    def configure_model(self) -> None:
        torch.empty(1 << 60)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Full, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (FullCPU, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes."),
    ],
)
def test_the_message_ends_with_the_table_and_two_settings(
    module: type[SFTModule],
    told: str,
    tiny_llama_dir: Path,
    demonstrations_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": f"{module.__module__}.{module.__name__}",
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
    assert "the device's memory is full: " in message
    assert told in message
    assert "optimiser state" in message
    assert "forward and backward" in message
    assert "Traceback" not in message
    settings = message[message.index("these settings save the most") :].splitlines()[1:]
    assert [("->" in line) for line in settings] == [True, True]
