"""Processes that something outside of us has started, held against what the trainer is for."""

import os

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from instructlit.errors import UserError


def check_slurm() -> None:
    """Refuse what SLURM has set where it does not say how many of its tasks a machine has.

    Raises:
        UserError: `SLURM_NTASKS` is over 1, as in a batch script, and `SLURM_NTASKS_PER_NODE` is not set.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if SLURMEnvironment.detect() and int(tasks) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"is {tasks}, and SLURM_NTASKS_PER_NODE is not set",
            where="SLURM_NTASKS",
            expected="sbatch --ntasks-per-node, of as many as --trainer.devices, and srun before the command",
            fix="for a run of one process inside an allocation put SLURM_JOB_NAME=interactive before the command",
        )


def take_rank(trainer: pl.Trainer) -> None:
    """Have this process be the one that the trainer takes it for. Until there is one, variables such as `RANK` say it,
    which may lie around from something else: then nobody would log or say anything.

    Raises:
        UserError: more processes were started than the trainer is for, so that each would be a run of its own.
    """
    if (count := started()) > trainer.world_size:
        raise UserError(
            f"{count} processes were started for a trainer of {trainer.world_size}: each would do the whole run, in "
            "the same folders",
            where="trainer.devices",
            expected="as many processes as --trainer.devices times --trainer.num_nodes, and a strategy for several",
            fix="set them, as by --trainer.devices 2 --trainer.strategy ddp for two on one machine, or start fewer",
        )
    rank_zero_only.rank = trainer.global_rank


def started() -> int:
    """Processes that torchrun or srun has started for this run, this one among them; 1 where neither has."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect():  # not so in an interactive shell; a batch script has the job's variables, but no step
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return 1
