"""The config a run was made from, written beside its logs and given to its loggers, with secrets taken out."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

SECRET = re.compile(
    r"(^|_)(api_?key|secret|password|passwd|credentials?|access_token|auth_token|hf_token|wandb_token)$", re.I
)
HIDDEN = "(not saved)"


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the log folder at the start; a run resumed there adds `config-2.yaml` and so on.

    The file can be given to `--config` again. `resolved` is what it holds.
    """

    @property
    def resolved(self) -> dict[str, Any]:
        """The whole config as plain containers, secrets taken out."""
        text = self.parser.dump(self.config, skip_none=False)
        return without_secrets(yaml.safe_load(text))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write once, on rank zero; the folder is agreed on by all ranks."""
        if self.already_saved:
            return
        self.already_saved = True
        folder = trainer.log_dir  # a collective: every rank must ask
        if not trainer.is_global_zero:
            return
        config = self.resolved
        if folder is not None:
            write_numbered(Path(folder), yaml.safe_dump(config, sort_keys=False))
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config})


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


def without_secrets(value: Any) -> Any:
    """`value` with every entry whose name says it is a secret replaced."""
    if isinstance(value, dict):
        return {k: HIDDEN if SECRET.search(str(k)) and v is not None else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_secrets(v) for v in value]
    return value
