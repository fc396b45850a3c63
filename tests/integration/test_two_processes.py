"""Every stage on two processes: it ends, both hold the same weights, and they are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import COMPARISONS, STAGES

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
from dataclasses import fields
from pathlib import Path
from lightning.pytorch import Callback
from safetensors.torch import save_file
from stage_helpers import sgd
from stage_runs import Files, run_stage
from instructlit.callbacks import StageProgress


class PlainDescent(Callback):
    # the weights tell the gradient with its size: AdamW's would not, nor what is clipped
    def setup(self, trainer, pl_module, stage):
        pl_module.make_optimizer, pl_module.gradient_clip_norm = sgd(0.01), None


name, devices, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
files = Files(folder / "model", *(folder / f"{f.name}.jsonl" for f in fields(Files)[1:]))
options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "enable_progress_bar": True}
trainer, module = run_stage(name, files, folder / "out", False, [PlainDescent(), StageProgress()], **options)
figures = {key: float(value) for key, value in trainer.callback_metrics.items() if "/val/" in key}
(folder / f"{name}-{devices}.json").write_text(json.dumps(figures))
weights = {key: value.contiguous() for key, value in module.state_dict().items()}
save_file(weights, folder / f"{name}-{devices}-{trainer.global_rank}.safetensors")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """The script and what the stages read, under the names of `Files`."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "model").symlink_to(tiny_llama_dir)
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": f"Say {n}: ", "completion": "x" * n} for n in range(1, 25)],
        "comparisons": COMPARISONS[:11],  # of which 7 are held out: no number that two processes share evenly
        "prompts": [{"prompt": f"prompt {n}"} for n in range(32)],
        "text": [{"text": f"text number {n} is about {n * n}"} for n in range(60)],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def train(folder: Path, name: str, devices: int) -> list[dict[str, torch.Tensor]]:
    """The weights every process ends with."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, str(folder / "script.py"), name, str(devices), str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"{name}-{devices}-{rank}.safetensors") for rank in range(devices)]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_on_two_processes(folder: Path, name: str) -> None:
    first, second = train(folder, name, 2)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first), "the ranks have drifted apart"
    if name == "ppo":
        return  # each rank samples from a stream of its own: other responses than one process draws
    (alone,) = train(folder, name, 1)
    one, two = (json.loads((folder / f"{name}-{devices}.json").read_text()) for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-4), "a held-out row was counted twice"
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, atol=1e-6, rtol=1e-4)
