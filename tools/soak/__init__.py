"""Kills a stage repeatedly and compares the result with an uninterrupted run."""

import json
from typing import Literal

from instructlit.errors import Ending, UserError, require

StageName = Literal["pretrain", "sft", "reward", "ppo", "ppo_ptx"]


def soak(
    stage: StageName = "ppo_ptx",
    kills: int = 10,
    seed: int = 0,
    output: str = "runs/soak",
    batches: int = 12,
    config: list[str] | None = None,
) -> None:
    """Show that a stage killed at any moment ends where one that was never killed ends, bit for bit.

    The stage of the embedded world is run once to its end. Then the same command is killed with SIGKILL at random
    moments, half of them aimed at a phase (sampling, updating, saving, validating, …), and restarted, until it has been
    killed as often as requested and has finished. Final weights, optimisers, schedules and random states, the exported
    models, the metrics and the samples are compared. One JSON line gives the result; the exit status is 0 only if
    nothing differs.

    Args:
        stage: which stage to kill.
        kills: number of kills.
        seed: seed of the world, the training and the moments of the kills.
        output: folder of the runs; the models that a stage starts from are trained there once and reused.
        batches: training batches of the run, at least 3; a checkpoint after every second but the last.
        config: further configs laid over the stage's, such as configs/optimizer/adamw_8bit.yaml.
    """
    from instructlit.tools.outputs import check_folder
    from instructlit.tools.soak.run import Soak

    check_folder(output)
    require("a whole number above 0", "--", kills=kills)
    if batches < 3:  # after some kills in a row the next one waits for a checkpoint, and the end is none
        raise UserError(f"found {batches}", where="--batches", expected="at least 3, so that a checkpoint is made")
    report = Soak(stage, kills, seed, output, batches, config or []).run()
    print(json.dumps(report))
    if report["differences"]:
        raise Ending(1)
