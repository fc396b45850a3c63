"""Starting `fsdp2_jobs.py` on one process or several, with the files its jobs read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import make_char_tokenizer
from processes import TESTS, environment, stage_folder
from torch import Tensor

from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.export import export_folder

Left = Callable[[str, int, int], dict[str, Any]]
"""What the job of a name, on so many processes, left behind in the process of a rank."""


def prepared(folder: Path, model: Path) -> Path:
    """`folder` with what the jobs read. Five held-out rows cannot be shared evenly by two processes."""
    held_out = [{"prompt": f"Tell {n}: ", "completion": "y" * n} for n in range(1, 6)]
    stage_folder(folder, model, held_out=held_out, held_out_prompts=[{"prompt": f"ask {n}"} for n in range(5)])
    torch.manual_seed(3)
    export_folder(load_scalar_model(Backbone(str(model))), make_char_tokenizer(), folder / "reward")
    return folder


def launch(folder: Path, *runs: tuple[int, list[str]]) -> None:
    """Run jobs on so many processes, one run after the other."""
    words = [f"{processes}:{','.join(jobs)}" for processes, jobs in runs]
    command = [sys.executable, str(TESTS / "fsdp2_jobs.py"), str(folder), *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]


def left_in(folder: Path) -> Left:
    """Reads what jobs left behind."""
    return lambda name, processes, rank: torch.load(folder / f"{name}-{processes}-{rank}.pt", weights_only=False)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two sets of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
