"""Compares the processes that a launcher started with what the trainer is configured for."""

import os

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from instructlit.errors import UserError


def check_slurm() -> None:
    """Refuse a SLURM environment that does not say how many tasks each machine has.

    Raises:
        UserError: `SLURM_NTASKS` is over 1, as in a batch script, and `SLURM_NTASKS_PER_NODE` is not set.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if SLURMEnvironment.detect() and int(tasks) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"is {tasks}, but SLURM_NTASKS_PER_NODE is not set",
            where="SLURM_NTASKS",
            expected="sbatch --ntasks-per-node, equal to --trainer.devices, and srun before the command",
            fix="for a single-process run inside an allocation, put SLURM_JOB_NAME=interactive before the command",
        )


def take_rank(trainer: pl.Trainer) -> None:
    """Set this process's rank to the trainer's. Before a trainer exists, the rank comes from variables such as `RANK`,
    which may be left over from something else: then no process would log or print anything.

    Raises:
        UserError: more processes were started than the trainer has, so that each would be a run of its own.
    """
    if (count := started()) > trainer.world_size:
        raise UserError(
            f"{count} processes were started, but the trainer is set up for {trainer.world_size}: each would do the "
            "whole run, in the same folders",
            where="trainer.devices",
            expected="as many processes as --trainer.devices times --trainer.num_nodes, and a strategy for several",
            fix="set them, such as --trainer.devices 2 --trainer.strategy ddp for two on one machine, or start fewer",
        )
    rank_zero_only.rank = trainer.global_rank


def started() -> int:
    """Processes that torchrun or srun has started for this run, this one among them; 1 where neither has."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect():  # not so in an interactive shell; a batch script has the job's variables, but no step
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return 1
