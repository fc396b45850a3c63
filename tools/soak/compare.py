"""Where two finished runs of one stage differ."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from instructlit.modules.strategy import METADATA, is_sharded_checkpoint

NOT_COMPUTED = ("perf/",)
"""Metrics that depend on the machine and not on the run."""

STATE_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "instructlit", "global_step", "epoch")
SHARDED = "shards"
"""The part of a sharded checkpoint that is split over ranks: weights, optimiser states, the moving average."""


def differences(whole: Path, killed: Path, stage: str) -> list[str]:
    """Every difference between two run folders, a short line each; empty where they are the same, bit for bit."""
    a, b = (state(run / "final.ckpt") for run in (whole, killed))
    found = [line for part in (*STATE_PARTS, SHARDED) for line in unequal(a.get(part), b.get(part), part)]
    found += models(whole / "models", killed / "models")
    rows, others = (metrics(run / "logs" / stage / "metrics.csv") for run in (whole, killed))
    found += unequal(rows, others, "metrics")
    for file in sorted((whole / "samples").glob("*.jsonl")):
        other = killed / "samples" / file.name
        if not other.exists() or file.read_bytes() != other.read_bytes():
            found.append(f"samples/{file.name}")
    return found


def state(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU; the tensors of a sharded one are assembled from their shards."""
    if not is_sharded_checkpoint(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    beside = path.with_suffix(".assembled")
    dcp_to_torch_save(path, beside)
    kept = torch.load(path / METADATA, map_location="cpu", weights_only=True)
    return kept | {SHARDED: torch.load(beside, map_location="cpu", weights_only=True)}


def unequal(a: Any, b: Any, at: str) -> list[str]:
    """Where two nested structures of dicts, lists, tensors and plain values are not identical; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        odd = [f"{at}: only one run has {key}" for key in sorted(map(str, a.keys() ^ b.keys()))]
        return odd + [line for key in a if key in b for line in unequal(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        odd = [f"{at}: {len(a)} and {len(b)} entries"] if len(a) != len(b) else []
        return odd + [line for i, (x, y) in enumerate(zip(a, b, strict=False)) for line in unequal(x, y, f"{at}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        return [] if same else [at]
    return [] if a == b or (a != a and b != b) else [f"{at}: {a!r} and {b!r}"]


def models(whole: Path, killed: Path) -> list[str]:
    """Exported weights that are not identical byte for byte."""
    names = {str(file.relative_to(whole)) for file in whole.rglob("*.safetensors") if not _is_input(file, whole)}
    other = {str(file.relative_to(killed)) for file in killed.rglob("*.safetensors") if not _is_input(file, killed)}
    found = [f"models/{name}: only one run has it" for name in sorted(names ^ other)]
    return found + [
        f"models/{name}"
        for name in sorted(names & other)
        if (whole / name).read_bytes() != (killed / name).read_bytes()
    ]


def metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file without those that depend on the machine, as text: every digit counts."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.startswith(NOT_COMPUTED)} for row in rows]


def report(stage: str, falls: list[dict[str, Any]], found: list[str], seconds: float) -> dict[str, Any]:
    """What the command prints."""
    counts: dict[str, int] = {}
    for fall in falls:
        counts[fall["phase"]] = counts.get(fall["phase"], 0) + 1
    return {
        "stage": stage,
        "kills": len(falls),
        "phases": dict(sorted(counts.items())),
        "falls": falls,
        "identical": not found,
        "differences": found[:20],
        "seconds": round(seconds, 1),
    }


def _is_input(file: Path, models: Path) -> bool:
    """Models that the stage started from are links to where they were trained."""
    return (models / file.relative_to(models).parts[0]).is_symlink()


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, so that -0 differs from 0 and NaN equals NaN."""
    return x.detach().contiguous().flatten().view(torch.uint8) if x.numel() and x.dtype != torch.bool else x
