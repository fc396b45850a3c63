"""Resuming a run: from which checkpoint, and whether it can continue exactly as it would have without the stop."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from instructlit.callbacks.common import rehearses, say
from instructlit.callbacks.resume_checkpoint import ResumeCheckpoint
from instructlit.callbacks.same_run import differences, take_up, what_it_depends_on
from instructlit.checkpoints import STATE, finished, read_manifest
from instructlit.errors import Ending, UserError

Mode = Literal["auto", "anyway", "never"]

MODES = """\
what to do if this run has checkpoints: `auto` resumes exactly or says why it cannot, `anyway` resumes even if
something differs and says what, `never` puts them aside and starts from scratch"""


def continue_from(
    mode: Mode, config: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule, data: Any
) -> Path | None:
    """The state to resume from, None to start from scratch.

    Raises:
        UserError: a change keeps the run from resuming exactly, and `mode` is auto.
        Ending: status 0, this run is already finished.
    """
    saver = next((c for c in trainer.callbacks if isinstance(c, ResumeCheckpoint)), None)  # type: ignore[attr-defined]
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
        say(f"this run is already finished ({saver.folder}); `--resume never` runs it again")
        raise Ending(0)
    if changed and mode == "auto":
        what = "cannot resume exactly, because this" if ended is None else "is finished, and since then this"
        raise UserError(
            f"the run in {saver.folder} {what} has changed:\n  " + "\n  ".join(changed),
            where="--resume",
            expected="what it started with",
            fix="restore it; `--resume anyway` resumes with the changes, `--resume never` starts from scratch",
        )
    if found is None or kept is None:
        say(f"the finished run left no checkpoint in {saver.folder}: starting from scratch")
        return None
    take_up(trainer.loggers, kept.loggers)
    if mode == "anyway" and hasattr(data, "accepts_changes"):
        data.accepts_changes = True
    say(f"resuming after batch {kept.batch}, from {found}")
    for line in changed:
        say(f"not resumed exactly: {line}")
    return found / STATE
