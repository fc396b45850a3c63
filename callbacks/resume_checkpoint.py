"""Checkpoints from which a run that was killed at any moment resumes as if it had not been."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from instructlit.callbacks.common import rehearses, run_config, say, stage_name
from instructlit.callbacks.same_run import identities, what_it_depends_on
from instructlit.checkpoints import (
    STATE,
    Manifest,
    checkpoints,
    claim,
    clear_partial,
    mark_finished,
    newest,
    partial,
    prune,
    publish,
    put_aside,
)
from instructlit.errors import Ending, UserError, chain, first_line, require

PREEMPTED = 75
"""Exit status after SIGTERM (`EX_TEMPFAIL` of sysexits.h): everything is saved, the same command resumes."""


@dataclass
class Moment:
    """Between which two batches a checkpoint is saved."""

    after_validation: bool = False  # in the middle of an epoch, where a validation was due
    after_epoch: bool = False
    will_stop: bool = False  # asked to, before it had reached its minimum (min_steps, min_epochs)


class ResumeCheckpoint(Checkpoint):
    """Saves the full state of a run between two training batches, at intervals and on SIGTERM.

    `instructlit fit` finds the newest complete checkpoint in the folder by itself: the same command resumes the run,
    and does what a run that was never stopped would have done, bit for bit. After SIGTERM, which a scheduler sends
    before it takes the machine, the current batch is finished, the state saved, and the process ends with status 75.

    Args:
        dirpath: folder of the checkpoints, used by this run only.
        every_n_batches: training batches from one checkpoint to the next; a batch of PPO is a rollout with its updates.
        keep: how many checkpoints to keep; older ones serve if the newest is damaged.
    """

    def __init__(self, dirpath: str, every_n_batches: int = 100, keep: int = 2):
        require("a whole number above 0", "ResumeCheckpoint.", every_n_batches=every_n_batches, keep=keep)
        self.dirpath, self.folder = dirpath, Path(dirpath)
        self.every_n_batches, self.keep = every_n_batches, keep
        self._asked_to_stop = False
        self._moment: Moment | None = None  # of the checkpoint that is being saved
        self._goes_on = Moment()  # the one of the checkpoint that this run continues from
        self._handler: Any = None
        self._lock: FileLock | None = None  # of the folder; the first process holds it
        self._run: dict[str, Any] | None = None  # what the run in training depends on; the first process knows it
        self._newest = 0  # batches done at the newest checkpoint of this process, or at the one it continues from

    def newest(self, module: pl.LightningModule) -> tuple[Path | None, list[str]]:
        """The newest complete checkpoint of the module's stage, and a sentence for each that was skipped."""
        return newest(self.folder, stage_name(module))

    # -- hooks -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or rehearses(trainer):
            return
        if trainer.is_global_zero:
            self._first_write(self._claim)
            clear_partial(self.folder)
        self._watch(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if rehearses(trainer):
            return
        # In place of Lightning's handler, which starts a collective inside the handler: ranks that are in another one
        # at that moment would hang or mix the two up.
        self._asked_to_stop = trainer.received_sigterm
        self._newest = batches_done(trainer)
        if trainer.is_global_zero:
            self._first_write(self._clear)
            self._run = what_it_depends_on(run_config(trainer), trainer, pl_module)
        trainer.should_stop |= self._goes_on.will_stop
        if self._goes_on.after_epoch:
            # The next epoch begins as any other. Else Lightning would look for the rest of the one that is over.
            trainer.fit_loop.epoch_loop.restarting = False
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._on_sigterm(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_back_handler()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._run is not None:  # callbacks that save come last: exports are written by now
            mark_finished(self.folder, self._manifest(trainer, pl_module, self._run))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back_handler()
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._moment or Moment())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._goes_on = Moment(**state_dict)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None and state["dirpath"] != callback.dirpath:
                _follow(state, str(callback.dirpath))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._moment is not None and self._moment.after_validation:
            # Lightning takes a state in which a batch is complete, and validation was due after it, for one that was
            # saved inside the validation, and counts the batch again on resume.
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    # -- between two batches ---------------------------------------------------------------------------------------

    def _watch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Have `_between_batches` called where nothing of a batch is left to do.

        No hook of Lightning's is there: at `on_train_batch_end` the batch's metrics are not logged and its validation
        has not run, and a process killed after a checkpoint made there would lose both.
        """
        epoch, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
        after_batch, after_epoch = batches.on_advance_end, epoch.on_advance_end

        def on_batch_done(fetcher: Any) -> None:
            after_batch(fetcher)
            if not batches.done:  # else the epoch's own end comes first
                validated = batches._should_check_val_fx(fetcher)
                self._between_batches(trainer, module, Moment(after_validation=validated))

        def on_epoch_done() -> None:
            after_epoch()
            self._between_batches(trainer, module, Moment(after_epoch=True))

        batches.on_advance_end = on_batch_done  # type: ignore[method-assign]
        epoch.on_advance_end = on_epoch_done  # type: ignore[method-assign]

    def _between_batches(self, trainer: pl.Trainer, module: pl.LightningModule, moment: Moment) -> None:
        done = batches_done(trainer)
        stop = _on_any_rank(self._asked_to_stop, trainer, module)
        if _is_last(trainer):
            return  # what follows (the end of training, exports) happens in a run that comes here again
        if done != self._newest and (stop or done % self.every_n_batches == 0):
            self._moment = replace(moment, will_stop=trainer.should_stop)
            self._save(trainer, module, done)
            self._moment, self._newest = None, done
        if stop:
            trainer.print(
                f"stopped by SIGTERM after batch {done}; all is saved, and the same command resumes from there"
            )
            raise Ending(PREEMPTED)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        target = partial(self.folder, done)
        try:
            if trainer.is_global_zero:
                clear_partial(self.folder)
                target.mkdir(parents=True)
            trainer.strategy.barrier("ResumeCheckpoint")
            trainer.save_checkpoint(target / STATE, weights_only=False)
            if self._run is not None:
                publish(target, self._manifest(trainer, module, self._run))
                prune(self.folder, self.keep)
        except (OSError, RuntimeError) as error:
            if trainer.world_size > 1 and system_error(error) is None:
                raise  # a collective breaks when another process is lost
            clear_partial(self.folder)
            kept = next(iter(checkpoints(self.folder)), None)
            fault = UserError(
                f"the checkpoint after batch {done} could not be written: {reason(error)}",
                where=str(self.folder),
                fix=f"free some space and run the same command again: it resumes from {kept or 'the beginning'}",
            )
            fault.saved = True  # there is no room for what else would be kept of a run that fails
            raise fault from error

    @staticmethod
    def _manifest(trainer: pl.Trainer, module: pl.LightningModule, run: dict[str, Any]) -> Manifest:
        return Manifest(stage_name(module), batches_done(trainer), run, identities(trainer.loggers))

    # -- SIGTERM ---------------------------------------------------------------------------------------------------

    def _on_sigterm(self, trainer: pl.Trainer) -> Callable[..., None]:
        def handler(signum: int, frame: Any) -> None:
            if not self._asked_to_stop and (launcher := trainer.strategy.launcher) is not None:
                launcher.kill(signum)  # the processes that Lightning has started on this machine
            self._asked_to_stop = True

        return handler

    def _give_back_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def _claim(self) -> None:
        """Take the folder, in which another run would take this one's checkpoints for its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.folder)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _clear(self) -> None:
        """Put aside checkpoints from after where this run begins: they would be taken for this run's."""
        if (aside := put_aside(self.folder, after=self._newest)) is not None:
            say(f"what an earlier run saved after batch {self._newest} is kept in {aside}")

    def _first_write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise UserError(
                f"cannot be written: {reason(error)}", where=f"ResumeCheckpoint.dirpath {self.folder}"
            ) from error


def batches_done(trainer: pl.Trainer) -> int:
    """Training batches since the start of the run, those of earlier processes included."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.completed)


def system_error(error: BaseException) -> OSError | None:
    """The system's error that is behind another, such as a disk without room."""
    return next((cause for cause in chain(error) if isinstance(cause, OSError) and cause.strerror), None)


def reason(error: BaseException) -> str:
    """The system's message for an error if it has one, such as `No space left on device`."""
    if (behind := system_error(error)) is not None:
        return str(behind.strerror)
    return first_line(error)


def _follow(state: dict[str, Any], folder: str) -> None:
    """Update the paths in a `ModelCheckpoint`'s state now that its folder is another.

    Lightning would forget all scores, and with them which checkpoint is the best.
    """

    def moved(path: str) -> str:
        now = Path(folder, os.path.relpath(path, state["dirpath"])) if path else None
        return str(now) if now is not None and now.exists() else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def _is_last(trainer: pl.Trainer) -> bool:
    """Whether no batch follows the one that was just done."""
    loop = trainer.fit_loop
    if trainer.should_stop and loop._can_stop_early:  # with min_steps or min_epochs Lightning goes on until then
        return True
    if loop.max_steps is not None and 0 <= loop.max_steps <= trainer.global_step:
        return True
    return loop.max_epochs is not None and 0 <= loop.max_epochs <= trainer.current_epoch


def _on_any_rank(asked: bool, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether a rank was asked to stop: all of them must save, and after the same batch."""
    if trainer.world_size == 1:
        return asked
    total = trainer.strategy.reduce(torch.tensor(float(asked), device=module.device), reduce_op="sum")
    return bool(float(total) > 0)
