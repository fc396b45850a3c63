"""A module and a datamodule as small as they can be, with the kinds of argument that configs have."""

from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from instructlit.errors import UserError


@dataclass
class Net:
    """What to build.

    Args:
        path: where it is.
        dtype: how it is held.
        quantization: how it is packed.
        revision: which of them.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["nf4", "int8"] | None = None
    revision: str | None = None


@dataclass
class Place:
    """Where rows are.

    Args:
        path: the file.
        weight: how often.
    """

    path: str
    weight: float = 1.0


def make_optimizer(params, lr: float = 1e-3) -> torch.optim.Optimizer:
    """An optimiser by a function."""
    return torch.optim.SGD(params, lr=lr)


class Module(pl.LightningModule):
    """Learns to be small."""

    def __init__(
        self,
        policy: Net,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-3, betas=(0.9, 0.95)),
        lr_scheduler: LRSchedulerCallable | None = None,
        micro_batch_size: int | None = None,
        reference: Net | None = None,
    ):
        """Keep the options.

        Args:
            policy: the net.
            optimizer: makes the optimiser.
            lr_scheduler: makes the schedule.
            micro_batch_size: rows at once.
            reference: another net.
        """
        super().__init__()
        self.policy, self.make_optimizer = policy, optimizer
        self.layer = torch.nn.Linear(2, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.policy.path == "nowhere":
            raise UserError("there is no folder `nowhere`", where="policy.path", expected="a folder")
        if self.policy.path == "bug":
            raise ZeroDivisionError("a fault of the program")
        if self.policy.path == "stop":
            raise KeyboardInterrupt
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss


class Data(pl.LightningDataModule):
    """Eight rows."""

    def __init__(
        self,
        tokenizer: str,
        train: str | Place | list[str | Place],
        validation: str | Place | list[str | Place] | None = None,
        batch_size: int = 4,
    ):
        """Keep the options.

        Args:
            tokenizer: its folder.
            train: rows to learn from.
            validation: rows to look at.
            batch_size: rows of a step.
        """
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=self.batch_size)  # type: ignore[arg-type]


RECIPE = """\
model:
  class_path: cli_stand_in.Module
  init_args:
    policy:
      path: base
    optimizer:
      class_path: torch.optim.AdamW
      init_args:
        lr: 1e-5
        betas: [0.9, 0.95]
data:
  class_path: cli_stand_in.Data
  init_args:
    tokenizer: base
    train: [a.jsonl, {path: b.jsonl, weight: 2}]
trainer:
  max_steps: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""
ROWS = ("a.jsonl", "b.jsonl")  # what the recipe reads; only their being there matters
