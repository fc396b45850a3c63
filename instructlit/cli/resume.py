"""Going on where a run stopped: which checkpoint, and whether what follows can be exactly what would have followed."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from instructlit.checkpoints import STATE, finished, read_manifest
from instructlit.errors import UserError
from instructlit.models.lineage import versions, weights_digest

Mode = Literal["auto", "anyway", "never"]

MODES = """\
what to do where checkpoints of this run are found: `auto` goes on exactly or says why it cannot, `anyway` goes on
though something differs and says what, `never` puts them aside and starts anew"""

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
`devices` and `num_nodes` make, is compared by itself."""

EXACT = ("torch", "transformers", "peft", "bitsandbytes", "instructlit")
"""Packages whose versions decide the last bits of a number."""


def what_it_depends_on(config: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """All that must be the same for a run to go on exactly, but for the data, which its loaders compare themselves."""
    device = trainer.strategy.root_device.type
    found: dict[str, Any] = {f"config.{key}": value for key, value in flat(config).items() if not free(key)}
    found["number of processes"] = trainer.world_size
    found["device"] = device
    if device == "cpu" and trainer.world_size == 1:  # Lightning shares the cores out to several, after this is asked
        found["number of threads (OMP_NUM_THREADS)"] = torch.get_num_threads()
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
    """What of that which a run depends on has changed, a line each."""
    lines = []
    for key in [*then, *(key for key in now if key not in then)]:
        before, after = then.get(key), now.get(key)
        if before != after:
            shown = key.removeprefix("config.")
            if shown.startswith("weights of"):
                lines.append(f"{shown}: not the ones the run began with")
            else:
                lines.append(f"{shown}: was {before}, is {after}")
    return lines


def resume_checkpoint(trainer: pl.Trainer) -> Any:
    """The trainer's `ResumeCheckpoint`, None where it has none."""
    kind = importlib.import_module("instructlit.callbacks").ResumeCheckpoint
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)  # type: ignore[attr-defined]


def identities(loggers: Iterable[Logger]) -> list[list[Any]]:
    """The class of each logger that knows its run again, and by what."""
    found = [[type(logger).__name__, getattr(logger, "identity", None)] for logger in loggers]
    return [pair for pair in found if pair[1] is not None]


def take_up(loggers: Iterable[Logger], identities: Iterable[list[Any]]) -> None:
    """Have loggers go on in the runs of those of their class; one without such begins a run."""
    left = list(identities)
    for logger in loggers:
        pair = next((pair for pair in left if pair[0] == type(logger).__name__), None)
        if pair is not None:
            left.remove(pair)
            logger.take_up(pair[1])  # type: ignore[attr-defined]


def rehearses(trainer: pl.Trainer) -> bool:
    """Whether the run is Lightning's `fast_dev_run`, of which nothing is kept."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def continue_from(
    mode: Mode, config: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule, data: Any
) -> Path | None:
    """The state to go on from, None for a start from the beginning.

    Raises:
        UserError: something has changed that keeps the run from going on exactly, and `mode` is auto.
        SystemExit: status 0, this very run has come to its end before.
    """
    saver = resume_checkpoint(trainer)
    if saver is None or mode == "never" or rehearses(trainer):
        return None
    found, skipped = saver.newest(module)
    for line in skipped:
        say(line)
    ended = finished(saver.folder)
    kept = read_manifest(found) if found is not None else None
    if (then := ended or kept) is None:
        return None
    changed = differences(then.run, what_it_depends_on(config, trainer, module))
    if ended is not None and not changed:
        say(f"this run came to its end before ({saver.folder}); `--resume never` runs it again")
        raise SystemExit(0)
    if changed and mode == "auto":
        what = "cannot go on exactly, since this" if ended is None else "came to its end, and since then this"
        raise UserError(
            f"the run in {saver.folder} {what} has changed:\n  " + "\n  ".join(changed),
            where="--resume",
            expected="what it began with",
            fix="restore it; `--resume anyway` goes on with what is there now, `--resume never` starts anew",
        )
    if found is None or kept is None:
        say(f"the run that came to its end has left no checkpoint in {saver.folder}: starting anew")
        return None
    take_up(trainer.loggers, kept.loggers)
    if mode == "anyway" and hasattr(data, "accepts_changes"):
        data.accepts_changes = True
    say(f"going on after batch {kept.batch}, from {found}")
    for line in changed:
        say(f"not exactly as it would have been: {line}")
    return found / STATE


def say(text: str) -> None:
    """A line for the user, apart from what the run prints; said once, by the first process."""
    if rank_zero_only.rank == 0:
        print(f"instructlit: {text}", file=sys.stderr, flush=True)
