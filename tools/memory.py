"""`instructlit memory`: the device memory that a run needs, estimated before anything is loaded."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from instructlit.memory import Change, Estimate, Run


def memory(
    config: list[str],
    *,
    fit: str | None = None,
    devices: int | None = None,
    completions: int = 4,
    stand_in: str | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    json: bool = False,
) -> int:
    """The device memory that a run needs, phase by phase: weights, gradients, optimiser state, activations, logits,
    keys and values. Only the config.json of each model is read. With --fit, what to change so that it fits; the exit
    status is 1 if nothing suffices.

    Args:
        config: configs of a training run; an option of `fit`'s command line (`--data.batch_size 32`) goes into one more
            config here.
        fit: memory of the device, such as 24GiB.
        devices: number of devices; by default that of the config, and one if it says "auto".
        completions: completions per prompt, when training a reward model.
        stand_in: model folder or Hub name whose config.json is read for folders that do not exist yet, such as the SFT
            model of a future run.
        device: what it runs on; on a CPU, PPO's decoder holds some weights once more. By default as the config's
            accelerator says, and a GPU where that is not "cpu".
        json: print bytes as JSON instead of the table.
    """
    from instructlit.errors import require
    from instructlit.memory import best, estimate, fitting
    from instructlit.memory.shapes import Shapes
    from instructlit.memory.table import parsed_size

    size = parsed_size(fit, "--fit") if fit else None
    require("a whole number above 0", "--", devices=devices, completions=completions)
    run, shapes = _run(config, devices, completions, stand_in, device), Shapes()
    found = estimate(run, shapes)
    fits = size is None or found.peak <= size
    changes = [] if fits or size is None else fitting(run, size, shapes)
    reached = fits or (bool(changes) and size is not None and changes[-1].after.peak <= size)
    alone = [] if fits else best(run, shapes=shapes)
    if json:
        _print_json(found, changes, reached)
    else:
        _print_table(found, size, changes, reached, alone)
    return 0 if reached else 1


def _run(paths: list[str], devices: int | None, completions: int, stand_in: str | None, device: str) -> "Run":
    from instructlit.cli.parts import built, checked
    from instructlit.memory import run_of

    config = checked(paths)
    module, data = (built(config, part, paths[-1]) for part in ("model", "data"))
    trainer = config.values.get("trainer") or {}
    count = devices or _devices(trainer.get("devices")) * int(trainer.get("num_nodes") or 1)
    run = run_of(
        module,
        data,
        precision=str(trainer.get("precision") or "32-true"),
        devices=count,
        strategy=_strategy(trainer.get("strategy"), count),
        completions=completions,
        cpu=(device if device != "auto" else trainer.get("accelerator")) == "cpu",
    )
    return run.standing_in(stand_in) if stand_in else run


def _devices(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and value > 0 else 1


def _strategy(value: Any, devices: int) -> Any:
    """How the devices share the work, from the name of Lightning's strategy."""
    name = str(value.get("class_path") if isinstance(value, dict) else value or "auto").lower()
    if "fsdp" in name or "modelparallel" in name or "deepspeed" in name:
        return "sharded"
    return "ddp" if devices > 1 else "single"


def _print_table(found: "Estimate", size: int | None, changes: "list[Change]", reached: bool, alone: Any) -> None:
    from rich.console import Console

    from instructlit.memory.table import lines, shown, table

    console = Console()
    console.print(table(found))
    for note in found.notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False)
    console.print(f"peak: {shown(found.peak)} ({found.largest.name})", style="bold", highlight=False)
    if size is None:
        return
    if not changes and reached:
        console.print(f"fits in {shown(size)}", style="green", highlight=False)
        return
    told = (
        f"to fit in {shown(size)}, all of these together:" if reached else f"does not fit in {shown(size)}, even with:"
    )
    console.print(told, style="yellow" if reached else "red", highlight=False)
    for line in lines(changes):
        console.print(line, markup=False, highlight=False)
    console.print("these save the most, each by itself:", style="dim", highlight=False)
    for line in lines(alone):
        console.print(line, markup=False, highlight=False)


def _print_json(found: "Estimate", changes: "list[Change]", reached: bool) -> None:
    import json

    phases = {phase.name: {**phase.parts, "total": found.total(phase)} for phase in found.phases}
    steps = [{"setting": change.setting, "peak": change.after.peak} for change in changes]
    out = {"held": found.held, "phases": phases, "peak": found.peak, "fits": reached, "changes": steps}
    print(json.dumps({**out, "notes": found.notes}, indent=2))
