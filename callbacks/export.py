"""The Hugging Face folder that a stage leaves behind, with the record of what it was made from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn

from instructlit.callbacks.common import numbers, progress_of, rehearses, run_config, run_seed, stage_name, wandb_runs
from instructlit.errors import UserError
from instructlit.models.export import check_destination, check_no_source
from instructlit.models.lineage import make_record, parent
from instructlit.models.sharding import is_sharded
from instructlit.modules.base import read_from
from instructlit.modules.rescue import raise_together
from instructlit.modules.strategy import FSDP2Strategy


class ExportHuggingFace(pl.Callback):
    """Writes the trained model as a Hugging Face folder when the run is complete, not when it is interrupted.

    The folder holds tokenizer, model card and `instructlit.json`: stage, parents with the digests of their weights,
    data files with SHA-256, the config without secrets, versions, seed and the last metrics.

    Args:
        dirpath: the folder to write; an earlier export there is replaced once the new one is complete.
        which: `last` takes the weights as they are at the end; `best` those of the checkpoint that the run's
            `ModelCheckpoint` with a `monitor` ranks best.
        merge: merge adapters into the weights; false writes only the adapters (and head), and names their trunk:
            a few hundred megabytes, and PPO holds one trunk for all models with adapters on it.
    """

    def __init__(self, dirpath: str, which: Literal["last", "best"] = "last", merge: bool = True):
        self.dirpath, self.which, self.merge = dirpath, which, merge
        self.folders: list[Path] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not callable(getattr(pl_module, "export", None)):
            raise UserError(
                f"{type(pl_module).__name__} cannot be exported",
                where="ExportHuggingFace",
                expected="a module with export(path, record) -> list of the folders written",
                fix="give it such a method (docs/plugging-in.md shows one), or leave the callback out",
            )
        if self.which == "best":
            _monitored(trainer)
        fault = None
        if trainer.is_global_zero:  # a run of a week must not end with a folder that could never have been written
            try:
                for folder in getattr(pl_module, "export_folders", lambda path: [path])(self.dirpath):
                    check_no_source(folder, read_from(pl_module))
                    check_destination(folder)
            except UserError as error:
                fault = error
        raise_together(trainer, fault)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if rehearses(trainer):  # a rehearsal is not to replace what a run has written
            return
        if trainer.num_training_batches == 0:  # Lightning ends such a run as if it were done
            raise UserError(
                "the data has no training batch, so that nothing was trained and no folder is written",
                where="data",
                expected="one batch or more",
                fix="more rows or a smaller batch: a loader with drop_last has none of fewer rows than a batch",
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            trainer.print(
                "Not written: under FSDPStrategy only a checkpoint has the full weights. Write the folder from one "
                f"with: instructlit export CHECKPOINT {self.dirpath}"
            )
            return
        record = run_record(trainer, pl_module)
        if self.which == "last":
            self._export(trainer, pl_module, record)
            return
        checkpoint = _monitored(trainer)
        if not checkpoint.best_model_path:  # as where max_steps comes before the first validation
            rank_zero_warn(
                f"{checkpoint.monitor} was never logged, so the last weights are written instead of the best. "
                "trainer.val_check_interval sets how often validation runs."
            )
            self._export(trainer, pl_module, record)
            return
        record["checkpoint"] = {
            "path": checkpoint.best_model_path,
            "monitor": checkpoint.monitor,
            "value": float(checkpoint.best_model_score or 0.0),
        }
        with weights_of(trainer, pl_module, checkpoint.best_model_path):
            self._export(trainer, pl_module, record)

    def _export(self, trainer: pl.Trainer, module: pl.LightningModule, record: dict[str, Any]) -> None:
        fault, beside = None, Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero or is_sharded(module):  # shards are gathered from every rank
            try:
                self.folders = self._written(module, self.dirpath, record)
                trainer.print("Written: " + ", ".join(str(folder) for folder in self.folders))
            except (UserError, OSError) as error:
                place = None if is_sharded(module) else beside / "export" / Path(self.dirpath).name
                fault = self._elsewhere(place, module, record, error)
                fault.told = getattr(error, "told", False)
        raise_together(trainer, fault)  # where nothing failed, this only waits for the others

    def _written(self, module: pl.LightningModule, path: str, record: dict[str, Any]) -> list[Path]:
        how = {} if self.merge else {"merge": False}  # a module of the user's own need not know of adapters
        return [Path(folder) for folder in module.export(path, record, **how)]  # type: ignore[operator]

    def _elsewhere(
        self, place: Path | None, module: pl.LightningModule, record: dict[str, Any], error: UserError | OSError
    ) -> UserError:
        """Write the model to another place, so that training is not lost; returns the error to raise.

        Shards, which it takes all ranks to gather, are not written a second time: `place` is None.
        """
        cause, expected = getattr(error, "what", str(error)), "a writable folder"
        from_checkpoint = "free space, then write the folder from the run's last checkpoint with `instructlit export`"
        if place is None:
            return UserError(cause, where=self.dirpath, expected=expected, fix=from_checkpoint)
        try:
            self.folders = self._written(module, str(place), record)
        except (UserError, OSError) as second:
            return UserError(
                f"{cause}; the model cannot be written to {place} either: {getattr(second, 'what', second)}",
                where=self.dirpath,
                expected=expected,
                fix=from_checkpoint,
            )
        fault = UserError(
            f"{cause}; the model was written to {', '.join(map(str, self.folders))} instead",
            where=self.dirpath,
            expected=expected,
            fix="move it to its intended place: the run is complete",
        )
        fault.saved = True
        return fault


def _loaded(path: str) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a missing file, a zip or pickle error of many kinds
        raise UserError(
            f"the best checkpoint cannot be read: {error}",
            where=path,
            expected="the file as the run wrote it",
            fix="restore it and write the folder from it with `instructlit export`",
        ) from error


@contextmanager
def weights_of(trainer: pl.Trainer, module: pl.LightningModule, path: str) -> Iterator[None]:
    """The module holds a checkpoint's weights (and average) inside the block, and its own again after it."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        with trainer.strategy.weights_of(path):
            yield
        return
    own = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    kept = _loaded(path)
    module.load_state_dict(kept["state_dict"])
    average, own_average = getattr(module, "ema", None), None
    if average is not None:
        own_average = {**average.state_dict()}
        own_average["average"] = {name: value.clone() for name, value in own_average["average"].items()}
        average.load_state_dict(kept["instructlit"]["ppo"]["ema"])
    try:
        yield
    finally:
        module.load_state_dict(own)  # whoever uses the module after this finds it as training left it
        if average is not None:
            average.load_state_dict(own_average)


def run_record(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """What the model in training is made from, as plain JSON values."""
    config = run_config(trainer)
    data = getattr(getattr(trainer, "datamodule", None), "data_files", list)()
    parents = getattr(module, "parents", dict)()
    done, _, unit = progress_of(trainer, module)
    runs = [{"id": run.id, "project": run.project, "group": run.group} for run in wandb_runs(trainer)]
    return make_record(
        stage_name(module),
        parents=[parent(path, role) for role, path in parents.items()],
        data=data,
        config=config,
        seed=run_seed(config),
        step=trainer.global_step,
        progress={"done": done, "unit": unit},
        metrics=numbers(trainer.callback_metrics),
        **({"wandb": runs} if runs else {}),
    )


def _monitored(trainer: pl.Trainer) -> ModelCheckpoint:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            return callback
    raise UserError(
        "`best` needs a ModelCheckpoint that monitors a metric",
        where="ExportHuggingFace.which",
        expected="a ModelCheckpoint with `monitor` among trainer.callbacks",
        fix="add one, for instance with monitor: sft/val/loss, or set which: last",
    )
