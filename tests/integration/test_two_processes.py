"""Every stage on two processes: it ends, both hold the same weights, and they are those of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import environment, stage_folder
from safetensors.torch import load_file
from stage_runs import COMPARISONS, STAGES

SCRIPT = """
import json, os, sys
from dataclasses import fields
from pathlib import Path
import torch
from forks import forked
from lightning.pytorch import Callback
from safetensors.torch import save_file
from stage_helpers import sgd
from stage_runs import Files, run_stage
from instructlit.callbacks import StageProgress


class PlainDescent(Callback):
    # the weights tell the gradient with its size: AdamW's would not, nor what is clipped
    def setup(self, trainer, pl_module, stage):
        pl_module.make_optimizer, pl_module.gradient_clip_norm = sgd(0.01), None


folder, devices = Path(sys.argv[1]), 2
if "LOCAL_RANK" not in os.environ:
    alone = [name for name in sys.argv[2:] if name != "ppo"]
    if (status := forked([sys.argv[1], *alone], seconds=300)) is None:
        devices = 1
    elif status:
        sys.exit(f"on one process: status {status}")
files = Files(folder / "model", *(folder / f"{f.name}.jsonl" for f in fields(Files)[1:]))
options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "enable_progress_bar": True}
for name in sys.argv[2:]:
    trainer, module = run_stage(name, files, folder / "out", False, [PlainDescent(), StageProgress()], **options)
    figures = {key: float(value) for key, value in trainer.callback_metrics.items() if "/val/" in key}
    (folder / f"{name}-{devices}.json").write_text(json.dumps(figures))
    weights = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(weights, folder / f"{name}-{devices}-{trainer.global_rank}.safetensors")
    torch.save(torch.get_rng_state(), folder / f"{name}-{devices}-{trainer.global_rank}.pt")
"""

pytestmark = pytest.mark.timeout(900)  # the first test waits for all the processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """Where every stage has run, on one process, which is a fork, and on two."""
    # 11, of which 7 are held out: no number that two processes share evenly; what a labeler ranked is on one of them
    comparisons = [row | {"labeler": f"labeler{n}"} for n, row in enumerate(COMPARISONS[:11])]
    folder = stage_folder(tmp_path_factory.mktemp("two"), tiny_llama_dir, comparisons=comparisons)
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), *STAGES]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_on_two_processes(folder: Path, name: str) -> None:
    first, second = (load_file(folder / f"{name}-2-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first), "the ranks have drifted apart"
    chance = [torch.load(folder / f"{name}-2-{rank}.pt") for rank in range(2)]
    assert not torch.equal(*chance), "the ranks would draw the same dropout"
    if name == "ppo":
        return  # each rank samples from a stream of its own: other responses than one process draws
    alone = load_file(folder / f"{name}-1-0.safetensors")
    one, two = (json.loads((folder / f"{name}-{devices}.json").read_text()) for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-4), "a held-out row was counted twice"
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, atol=1e-6, rtol=1e-4)
