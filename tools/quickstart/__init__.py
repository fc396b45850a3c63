"""`instructlit quickstart`: the whole recipe in the embedded world, from random weights to a report page."""

import json
from pathlib import Path

from instructlit.errors import Ending, UserError
from instructlit.files import write_json


def quickstart(
    seed: int = 1,
    output: str = "runs/quickstart",
    seeds: list[int] | None = None,
    configs: str | None = None,
    trial: bool = False,
    restart_from: str | None = None,
) -> None:
    """Run the whole recipe in the embedded world: pretraining, SFT, reward model, PPO, PPO-ptx, evaluation, report.

    If interrupted, the same command resumes. With several seeds it prints a verdict over them, and the exit
    status is 1 unless the claims hold for at least four of five.

    Args:
        seed: seed of the world and of every stage.
        output: folder of the run; with `seeds`, one folder `seed-N` in it for each.
        seeds: run these seeds one after the other and judge them together, as in `--seeds 11 12 13 14 15`.
        configs: folder with the stages' YAML files; by default those of the package.
        trial: a few steps of everything, to see that it runs; its numbers mean nothing.
        restart_from: a stage to run again, with everything that depends on it, even if nothing has changed.
    """
    from instructlit.tools.outputs import check_folder
    from instructlit.tools.quickstart.runner import Runner
    from instructlit.tools.quickstart.stages import CONFIGS, stages

    check_folder(output)
    folder = Path(configs) if configs else CONFIGS
    if not folder.is_dir():
        raise UserError(
            "no such folder", where=f"--configs {folder}", expected="a folder with pretrain.yaml, sft.yaml and so on"
        )
    if seeds is not None and (len(set(seeds)) != len(seeds) or not seeds):
        raise UserError("needs seeds that differ", where="--seeds", expected="for example 11 12 13 14 15")
    runs = [Path(output)] if seeds is None else [Path(output) / f"seed-{number}" for number in seeds]
    for count, (number, run) in enumerate(zip(seeds or [seed], runs, strict=True), start=1):
        if seeds is not None:
            print(f"\n=== seed {number} ({count} of {len(seeds)}) in {run}", flush=True)
        runner = Runner(run, stages(number, trial), folder)
        if restart_from is not None:
            runner.forget(restart_from)
        runner.run()
    if seeds is not None:
        _judge(runs, Path(output))


def _judge(runs: list[Path], output: Path) -> None:
    """Prints the verdict over the runs, writes verdict.json, and exits with status 1 if it does not hold."""
    from instructlit.tools.quickstart.verdict import needed, verdict
    from instructlit.tools.quickstart.verdict_table import print_verdict

    whole = verdict([json.loads((run / "results.json").read_text()) for run in runs])
    write_json(output / "verdict.json", whole)
    print_verdict(whole)
    print(f"the claims hold for {whole['seeds_that_hold']} of {whole['seeds']} seeds; {needed(len(runs))} are needed")
    print(f"{output / 'verdict.json'}; the page of each seed: {runs[0] / 'report.html'} and so on")
    if not whole["holds"]:
        raise Ending(1)
