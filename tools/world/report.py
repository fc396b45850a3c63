"""`instructlit world report`: a run folder's results as one self-contained page and as a table."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from instructlit.tools.quickstart.verdict import criteria
from instructlit.tools.world import plots
from instructlit.tools.world.folder import rows
from instructlit.tools.world.page import Page
from instructlit.tools.world.result_table import print_results
from instructlit.tools.world.run_folder import Points, logged, optimisation_curve, read_results
from instructlit.world import World

_PACKAGES = ("instructlit", "torch", "lightning", "transformers", "tokenizers", "numpy")


def world_report(run: str = ".", output: str = "report.html") -> None:
    """Write the page of a quickstart run and print its table.

    Args:
        run: the run folder, with results.json, evaluation/, logs/, samples/ and configs/.
        output: the page, relative to the run folder.
    """
    folder = Path(run)
    results = read_results(folder)
    page = Page(
        results=results,
        criteria=criteria(results),
        preference=plots.preference_plot(results["models"]),
        optimisation=_optimisation(folder, World(results["seed"])),
        training=_training(folder),
        samples=one_per_use_case(list(rows(folder / "evaluation" / "samples.jsonl"))),
        commands=_commands(folder),
        configs={str(p.relative_to(folder)): p.read_text() for p in sorted((folder / "configs").glob("*.yaml"))},
        versions=_versions(),
        folder="/".join(folder.resolve().parts[-2:]),
    )
    target = folder / output
    target.write_text(page.html(), encoding="utf-8")
    print_results(results)
    print(f"written: {target}")


def one_per_use_case(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first sample of each use case, in order of appearance."""
    first: dict[str, dict[str, Any]] = {}
    for row in samples:
        first.setdefault(str(row.get("use_case")), row)
    return list(first.values())


def _optimisation(folder: Path, world: World) -> list[str]:
    found = {name: optimisation_curve(folder / "samples" / f"{name}.jsonl", world) for name in ("ppo", "ppo_ptx")}
    curves = {name: curve for name, curve in found.items() if curve}
    return plots.optimisation_plots(curves) if curves else []


def _training(folder: Path) -> list[str]:
    logs = folder / "logs"

    def stage(name: str, metrics: dict[str, str]) -> dict[str, Points]:
        return {label: logged(logs / name, metric) for label, metric in metrics.items()}

    def both(metric: str) -> dict[str, Points]:
        return {name: logged(logs / name, metric, x="ppo/episodes") for name in ("ppo", "ppo_ptx")}

    panels = [
        (
            "pretraining loss",
            stage("pretrain", {"training": "pretrain/train/loss", "held out": "pretrain/val/loss"}),
            "step",
        ),
        ("SFT loss", stage("sft", {"training": "sft/train/loss", "held out": "sft/val/loss"}), "step"),
        (
            "reward model's accuracy",
            stage("reward", {"training": "reward/train/accuracy", "held out": "reward/val/accuracy"}),
            "step",
        ),
        ("PPO: reward model's score", both("ppo/objective/score"), "episodes"),
        ("PPO: KL from SFT (nats)", both("ppo/objective/kl"), "episodes"),
        ("PPO: entropy a token (nats)", both("ppo/policy/entropy"), "episodes"),
    ]
    drawn = []
    for title, series, x_label in panels:
        filled = {name: smoothed(points) for name, points in series.items() if points}
        if filled:
            drawn.append(plots.curve_plot(title, filled, x_label))
    return drawn


def smoothed(points: Points, at_most: int = 120) -> Points:
    """Neighbouring points averaged, so that no curve has more than `at_most`."""
    if len(points) <= at_most:
        return points
    size = -(-len(points) // at_most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _commands(folder: Path) -> list[dict[str, Any]]:
    path = folder / "commands.json"
    return json.loads(path.read_text()) if path.exists() else []


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
