"""Whether a run is the one that was stopped: what it depends on, and how its loggers recognise it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from instructlit.models.lineage import versions, weights_digest

FREE = {
    *("ckpt_path", "resume", "weights_only", "config"),
    *(
        f"trainer.{name}"
        for name in (
            *("logger", "callbacks", "default_root_dir", "enable_progress_bar", "enable_model_summary"),
            *("enable_checkpointing", "profiler", "detect_anomaly", "log_every_n_steps", "devices", "num_nodes"),
        )
    ),
    "data.init_args.num_workers",
}
"""Settings that may change between two starts: none of them changes what is computed. The number of processes, which
`devices` and `num_nodes` make, is compared separately."""

THREADS = "number of threads (OMP_NUM_THREADS)"

EXACT = ("torch", "transformers", "peft", "bitsandbytes", "instructlit")
"""Packages whose versions decide the last bits of a number."""


def what_it_depends_on(config: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """All that must be the same for an exact resume, except for the data, which its loaders compare themselves."""
    device = trainer.strategy.root_device.type
    found: dict[str, Any] = {f"config.{key}": value for key, value in flat(config).items() if not free(key)}
    found["number of processes"] = trainer.world_size
    found["device"] = device
    if device == "cpu" and trainer.world_size == 1:  # Lightning shares the cores out to several, after this is asked
        found[THREADS] = torch.get_num_threads()
    found |= {f"version of {name}": number for name, number in versions().items() if name in EXACT}
    for role, path in getattr(module, "parents", dict)().items():
        folder = Path(path).expanduser()
        found[f"weights of the {role} model, {path}"] = weights_digest(folder) if folder.is_dir() else None
    return found


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """A nest of mappings as one mapping with dotted keys; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    items: dict[str, Any] = {}
    for name, inner in value.items():
        items |= flat(inner, f"{key}.{name}" if key else str(name))
    return items


def free(key: str) -> bool:
    """Whether a setting may change between two starts."""
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed of what a run depends on, one line each."""
    lines = []
    for key in [*then, *(key for key in now if key not in then)]:
        before, after = then.get(key), now.get(key)
        if key == THREADS and None in (before, after):  # told by the device or the number of processes
            continue
        if key.startswith("version of ") and None in (before, after):  # what was not installed was not used
            continue
        if before != after:
            shown = key.removeprefix("config.")
            if shown.startswith("weights of"):
                lines.append(f"{shown}: not those that the run began with")
            else:
                lines.append(f"{shown}: was {before}, is {after}")
    return lines


def identities(loggers: Iterable[Logger]) -> list[list[Any]]:
    """The class of each logger that can recognise its run, and the run's identity."""
    found = [[type(logger).__name__, getattr(logger, "identity", None)] for logger in loggers]
    return [pair for pair in found if pair[1] is not None]


def take_up(loggers: Iterable[Logger], identities: Iterable[list[Any]]) -> None:
    """Make each logger continue the run of an earlier one of its class; one without any begins a new run."""
    left = list(identities)
    for logger in loggers:
        pair = next((pair for pair in left if pair[0] == type(logger).__name__), None)
        if pair is not None:
            left.remove(pair)
            logger.take_up(pair[1])  # type: ignore[attr-defined]
