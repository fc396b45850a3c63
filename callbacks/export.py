"""The Hugging Face folder that a stage leaves behind, with the record of what it was made from."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from instructlit.callbacks.common import numbers, progress_of, run_config, run_seed, stage_name, wandb_runs
from instructlit.errors import UserError
from instructlit.models.lineage import make_record, parent


class ExportHuggingFace(pl.Callback):
    """Writes the trained model as a Hugging Face folder when the run has come to its end; not when it is interrupted.

    The folder holds tokenizer, model card and `instructlit.json`: stage, parents with the digests of their weights,
    data files with SHA-256, the config without secrets, versions, seed and the last metrics.

    Args:
        dirpath: the folder to write; an earlier export there is replaced once the new one is whole.
        which: `last` takes the weights as they are at the end; `best` those of the checkpoint that the run's
            `ModelCheckpoint` with a `monitor` holds for the best.
        merge: merge adapters into the weights; false writes the adapters (and head) alone, and names their trunk:
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

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        record = run_record(trainer, pl_module)
        if self.which == "last":
            self._export(trainer, pl_module, record)
            return
        checkpoint = _monitored(trainer)
        if not checkpoint.best_model_path:
            raise UserError(
                f"no checkpoint was written, since {checkpoint.monitor} was never logged",
                where="ExportHuggingFace.which",
                expected="a run with at least one validation",
                fix="validate more often (trainer.val_check_interval), or set which: last",
            )
        record["checkpoint"] = {
            "path": checkpoint.best_model_path,
            "monitor": checkpoint.monitor,
            "value": float(checkpoint.best_model_score or 0.0),
        }
        own = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
        kept = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
        pl_module.load_state_dict(kept["state_dict"])
        average, own_average = getattr(pl_module, "ema", None), None
        if average is not None:
            own_average = {**average.state_dict()}
            own_average["average"] = {name: value.clone() for name, value in own_average["average"].items()}
            average.load_state_dict(kept["instructlit"]["ppo"]["ema"])
        self._export(trainer, pl_module, record)
        pl_module.load_state_dict(own)  # whoever uses the module after this finds it as training left it
        if average is not None:
            average.load_state_dict(own_average)

    def _export(self, trainer: pl.Trainer, module: pl.LightningModule, record: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            how = {} if self.merge else {"merge": False}  # a module of the user's own need not know of adapters
            self.folders = [Path(f) for f in module.export(self.dirpath, record, **how)]  # type: ignore[operator]
            trainer.print("Written: " + ", ".join(str(folder) for folder in self.folders))
        trainer.strategy.barrier("ExportHuggingFace")


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
