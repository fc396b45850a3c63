"""Going on where a run stopped: which checkpoint, and whether what follows can be exactly what would have followed."""

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
what to do where checkpoints of this run are found: `auto` goes on exactly or says why it cannot, `anyway` goes on
though something differs and says what, `never` puts them aside and starts anew"""


def continue_from(
    mode: Mode, config: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule, data: Any
) -> Path | None:
    """The state to go on from, None for a start from the beginning.

    Raises:
        UserError: something has changed that keeps the run from going on exactly, and `mode` is auto.
        Ending: status 0, this very run has come to its end before.
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
        say(f"this run came to its end before ({saver.folder}); `--resume never` runs it again")
        raise Ending(0)
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
