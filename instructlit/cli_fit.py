"""`instructlit fit|validate|test|predict`: LightningCLI, with any module and any datamodule by class_path."""

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI


def run(name: str, args: Sequence[str]) -> int:
    """Run Lightning's `name` with the options in `args`."""
    LightningCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        trainer_defaults={"use_distributed_sampler": False},
        args=[name, *args],
    )
    return 0
