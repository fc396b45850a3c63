"""Dataset and model artifacts in W&B, each linked to the run that made it and the runs that used it.

An artifact is identified by its content. The run that makes a model and the run that starts from it describe the folder
in the same way, so that W&B sees one version and draws the line from data to SFT to reward model to PPO, even if the
runs were offline and are uploaded in any order.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from instructlit.callbacks.common import stage_name, wandb_runs
from instructlit.callbacks.export import ExportHuggingFace
from instructlit.models.lineage import RECORD, read_record

if TYPE_CHECKING:
    from wandb import Artifact, Run


class WandbLineage(pl.Callback):
    """Records in W&B what a run read (data files, parent models) and what it made (the exported folders).

    Without a W&B logger nothing happens. The inputs are also in the run's config under `lineage`.

    Args:
        upload_models: upload the weights; otherwise W&B holds their digests and locations.
        upload_data: upload the data files; otherwise their digests and locations.
    """

    def __init__(self, upload_models: bool = False, upload_data: bool = False):
        self.upload_models, self.upload_data = upload_models, upload_data

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        runs = wandb_runs(trainer)
        if not runs:
            return
        files = getattr(getattr(trainer, "datamodule", None), "data_files", list)()
        parents = getattr(pl_module, "parents", dict)()
        told = {
            "stage": stage_name(pl_module),
            "data": files,
            "parents": [
                {"role": role, "path": path, "weights_sha256": read_record(path).get("weights_sha256")}
                for role, path in parents.items()
            ],
        }
        folders = [Path(path) for path in dict.fromkeys(parents.values()) if Path(path).is_dir()]
        for run in runs:
            run.config.update({"lineage": told}, allow_val_change=True)
            with _outage_endured():
                for file in files:
                    _use(run, self.dataset_artifact(file))
                for folder in folders:
                    _use(run, self.model_artifact(folder))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # After every on_fit_end, so that it does not matter whether the export is named before or after this callback.
        for run in wandb_runs(trainer):
            with _outage_endured():
                for folder in exported_folders(trainer):
                    run.log_artifact(self.model_artifact(folder))

    def dataset_artifact(self, file: dict[str, Any]) -> "Artifact":
        """A data file as `datamodule.data_files()` describes it."""
        import wandb

        path = Path(file["path"])
        told = {key: value for key, value in file.items() if key != "path"} | {"file": path.name}
        artifact = wandb.Artifact(_name("data", path.stem), type="dataset", metadata=told)
        if path.is_file():
            _add(artifact, path, upload=self.upload_data)
        else:  # a folder or a name on the Hub: its fingerprint stands for it
            with artifact.new_file("source.txt") as note:
                note.write(f"{file['path']}\n{file.get('sha256')}\n")
        return artifact

    def model_artifact(self, folder: Path) -> "Artifact":
        """A model folder; the record is always uploaded, the rest as asked."""
        import wandb

        record = read_record(folder)
        told = {key: record.get(key) for key in ("stage", "weights", "weights_sha256", "step", "metrics", "versions")}
        artifact = wandb.Artifact(
            _name(record.get("stage") or "model", folder.resolve().name), type="model", metadata=told
        )
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            _add(artifact, path, str(path.relative_to(folder)), upload=self.upload_models or path.name == RECORD)
        return artifact


def exported_folders(trainer: pl.Trainer) -> list[Path]:
    """What the run's ExportHuggingFace callbacks have written."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [folder for c in callbacks if isinstance(c, ExportHuggingFace) for folder in c.folders]


@contextmanager
def _outage_endured() -> Iterator[None]:
    """Artifacts are looked up at the server even where everything else waits for it; without one they are left out."""
    import wandb

    try:
        yield
    except (wandb.Error, OSError) as error:
        rank_zero_warn(
            f"W&B: artifacts are not recorded, because the server does not answer ({error}). The same facts are in the "
            f"run's config and in {RECORD} of every exported folder."
        )


def _add(artifact: "Artifact", path: Path, name: str | None = None, *, upload: bool) -> None:
    """The file itself or a reference to it: both are told by the same digest of its bytes."""
    name = name or path.name
    if upload:
        artifact.add_file(str(path), name=name, policy="immutable")
    else:
        artifact.add_reference(path.resolve().as_uri(), name=name, checksum=True)


def _use(run: "Run", artifact: "Artifact") -> None:
    """Note an artifact as an input of a run.

    `use_artifact` refuses to work offline, for artifacts named by version are looked up at the server. One described
    by its content needs no server: wandb logs it as an input, which is what `use_artifact` does with it when online.
    """
    if run.offline and hasattr(run, "_log_artifact"):
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    elif not run.offline:
        run.use_artifact(artifact)


def _name(kind: str, stem: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "unnamed"
    return stem if stem == kind else f"{kind}-{stem}"
