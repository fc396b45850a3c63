"""`instructlit iterate`: rounds of collecting, labelling, a new reward model and PPO, until there is no more gain."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructlit.errors import UserError

if TYPE_CHECKING:
    from instructlit.tools.iterate.config import Loop


def iterate(
    config: list[str],
    output: str = "runs/loop",
    rounds: int | None = None,
    seed: int | None = None,
    wait: bool = False,
    restart_from: str | None = None,
) -> None:
    """Run rounds: sample answers, have them ranked, train a reward model on all rounds, run PPO, compare the policies.

    Every round is a folder, rounds/N, with everything it read and wrote. If stopped at any step, the same command
    resumes there. If people label, the command names the files it waits for and ends; run it again when the labels are
    complete. With `stop: no_gain`, the default, it ends when the interval shows no gain from a round.

    Args:
        config: YAML files of the loop, a later one over an earlier; docs/iterating.md lists the options.
        output: folder of the run.
        rounds: maximum number of rounds, instead of the config's.
        seed: seed of the loop, instead of the config's.
        wait: if people label, keep running and check for their labels every half minute.
        restart_from: a stage to run again, with everything that depends on it, such as `rounds/2/reward`.
    """
    from instructlit.cli.config import find
    from instructlit.tools.iterate.config import load
    from instructlit.tools.iterate.plan import Planner
    from instructlit.tools.iterate.recipes import recipe
    from instructlit.tools.iterate.waiting import check_sides, labelled
    from instructlit.tools.outputs import check_folder
    from instructlit.tools.quickstart.runner import Runner

    check_folder(output)
    changed = {name: value for name, value in (("rounds", rounds), ("seed", seed)) if value is not None}
    loop, folder = load(config, changed), Path(output)
    files = {
        f"{name}-{place}.yaml": find(file)
        for name, layers in (("loop", config), ("reward", loop.reward), ("ppo", loop.ppo))
        for place, file in enumerate(layers, start=1)
    }
    configs = {name: [file for file in files if file.startswith(f"{name}-")] for name in ("reward", "ppo")}
    planner = Planner(loop, folder, configs, {"reward": recipe(loop.reward), "ppo": recipe(loop.ppo)})
    runner = Runner(folder, [], files, brief=True)
    runner.environment["PYTHONPATH"] = os.pathsep.join(  # a class_path may name a module in the working directory
        filter(None, (os.environ.get("PYTHONPATH"), os.getcwd()))
    )
    number = 0
    for number in range(1, loop.rounds + 1):
        for segment in planner.round(number):
            if segment.waits_for:
                tasks, labels = (folder / file for file in segment.waits_for)
                check_sides(tasks, loop.validation_fraction)
                if not labelled(tasks, labels, loop.labelers, loop.database, wait):
                    return
            runner.plan += segment.stages
            if restart_from in {stage.name for stage in segment.stages}:
                runner.forget(str(restart_from))
                restart_from = None
            runner.run()
        result = json.loads((folder / "rounds" / str(number) / "round.json").read_text(encoding="utf-8"))
        print(f"\n{told(result)}", flush=True)
        reason = ended(result, loop)
        if reason and number < loop.rounds:
            print(f"The loop ends here: {reason}.")
            break
    if restart_from is not None:
        raise UserError(
            f"there is no stage `{restart_from}`", where="--restart_from", expected="a stage such as rounds/1/reward"
        )
    _write_report(folder, number)


def ended(result: dict[str, Any], loop: "Loop") -> str | None:
    """Why no further round is run, or None."""
    if "preference" not in result or loop.stop == "never":
        return None
    low, high = result["preference_low"], result["preference_high"]
    interval = f"the 95 % interval of the preference, {low:.3f} to {high:.3f},"
    if loop.stop == "no_gain" and low <= 0.5:
        return f"{interval} is not above one half"
    if high < 0.5:
        return f"{interval} is below one half"
    return None


def told(result: dict[str, Any]) -> str:
    """The result of a round in one line."""
    parts = [f"round {result['round']}: {result['labels']} comparisons"]
    if "accuracy_before" in result:
        parts.append(f"the old reward model orders {result['accuracy_before']:.1%} of the new policy's pairs correctly")
    parts.append(f"the new one {result['accuracy']:.1%}")
    if "preference" in result:
        low, high = result["preference_low"], result["preference_high"]
        parts.append(f"preferred to the previous policy {result['preference']:.1%} ({low:.1%} to {high:.1%})")
    return ", ".join(parts)


def _write_report(folder: Path, last: int) -> None:
    from instructlit.tools.iterate.report import write_report

    files = [folder / "rounds" / str(number) / "round.json" for number in range(1, last + 1)]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    print(f"\nReport: {write_report(folder, results)}")
