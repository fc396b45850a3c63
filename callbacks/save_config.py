"""The config a run was made from, written beside its logs and given to its loggers, with secrets taken out."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from instructlit.redaction import without_secrets

UNWRITABLE = "Unable to serialize instance"


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the log folder at the start; a run resumed there adds `config-2.yaml` and so on.

    The file can be given to `--config` again. `resolved` is what it holds.
    """

    @property
    def resolved(self) -> dict[str, Any]:
        """The whole config as plain containers, secrets taken out."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=rf"\s*{UNWRITABLE}")
            text = self.parser.dump(self.config, skip_unset=False)
        return without_secrets(writable(yaml.safe_load(text)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write once, on rank zero; the folder is agreed on by all ranks."""
        if self.already_saved:
            return
        self.already_saved = True
        folder = trainer.log_dir  # a collective: every rank must ask
        if not trainer.is_global_zero:
            return
        config = self.resolved
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config})
        if folder is not None:
            write_numbered(run_folder(Path(folder), trainer.logger), yaml.safe_dump(config, sort_keys=False))


def run_folder(folder: Path, logger: Logger | None) -> Path:
    """The folder of this run: `folder`, and a part of it where the logger shares one, as W&B does."""
    if logger is None or logger.log_dir is not None:
        return folder
    return folder / str(logger.name) / str(logger.version)


def write_numbered(folder: Path, text: str) -> Path:
    """Write `config.yaml`, or the next free `config-N.yaml`; nothing where the newest already says the same."""
    folder.mkdir(parents=True, exist_ok=True)
    number, path, newest = 1, folder / "config.yaml", None
    while path.exists():
        number, newest, path = number + 1, path, folder / f"config-{number + 1}.yaml"
    if newest is not None and newest.read_text(encoding="utf-8") == text:
        return newest
    path.write_text(text, encoding="utf-8")
    return path


def writable(value: Any) -> Any:
    """`value` without the entries that jsonargparse could not write: defaults of a signature, same when left out."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(v, str) and v.startswith(UNWRITABLE))}
        return {k: writable(v) for k, v in kept.items()}
    return [writable(v) for v in value] if isinstance(value, list) else value
