"""Stages in processes of their own: the folder that they read, and what the processes are started with."""

import os
from pathlib import Path
from typing import Any

from conftest import write_jsonl
from stage_runs import COMPARISONS

TESTS = Path(__file__).resolve().parent


def stage_folder(folder: Path, model: Path, **rows: list[dict[str, Any]]) -> Path:
    """`folder` with what the stages read, under the names of `stage_runs.Files`.

    Args:
        folder: is there already.
        model: becomes `model` in it.
        rows: of further files, or of these with other rows.
    """
    (folder / "model").symlink_to(model)
    read = {
        "demonstrations": [{"prompt": f"Say {n}: ", "completion": "x" * n} for n in range(1, 25)],
        "comparisons": COMPARISONS,
        "prompts": [{"prompt": f"prompt {n}"} for n in range(32)],
        "text": [{"text": f"text number {n} is about {n * n}"} for n in range(60)],
    }
    for name, content in (read | rows).items():
        write_jsonl(folder / f"{name}.jsonl", content)
    return folder


def environment() -> dict[str, str]:
    """This process's, with the package and the tests' modules on the path; one thread a process, which waits idle."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
