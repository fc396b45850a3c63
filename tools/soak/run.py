"""One soak: the stage's ancestors, a run to the end, a run that is killed, the comparison."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from instructlit.checkpoints import checkpoints
from instructlit.cli.config import find
from instructlit.errors import UserError
from instructlit.tools.quickstart.runner import Runner
from instructlit.tools.quickstart.stages import CONFIGS, Stage, stages
from instructlit.tools.soak.compare import differences, report
from instructlit.tools.soak.phases import phase_in

AIMS = {
    "pretrain": ("update", "save", "validation", "between", "export"),
    "sft": ("update", "save", "validation", "between", "export"),
    "reward": ("update", "save", "validation", "between", "export"),
    "ppo": ("rollout", "update", "save", "validation", "between", "export"),
    "ppo_ptx": ("rollout", "update", "save", "validation", "between", "export"),
}
FRUITLESS = 3
"""After this many kills in a row without a new checkpoint, the next kill waits for one."""


class Soak:
    """Args as of `instructlit soak`."""

    def __init__(self, stage: str, kills: int, seed: int, output: str, batches: int, configs: list[str]):
        self.kills, self.seed, self.batches = kills, seed, batches
        self.root = Path(output).resolve() / f"seed-{seed}"
        self.random = random.Random(f"{seed} {stage} {kills}")
        plan = stages(seed, trial=True)
        self.stage = next(one for one in plan if one.name == stage)
        self.ancestors = _ancestors(self.stage, plan)
        self.overlays = [find(name).resolve() for name in configs]

    def run(self) -> dict[str, Any]:
        """Everything; returns the report."""
        start = time.monotonic()
        origin = self.root / "ancestors"
        with contextlib.redirect_stdout(sys.stderr):  # stdout has only the one line of the report
            Runner(origin, self.ancestors, CONFIGS).run()
        whole, killed = (self._fresh(origin, name) for name in ("whole", "killed"))
        took = self._to_the_end(whole)
        falls, found = self._kill_and_go_on(whole, killed, took)
        return report(self.stage.name, falls, found, time.monotonic() - start)

    def _fresh(self, origin: Path, name: str) -> Path:
        """A run folder that sees the ancestors' data and models and nothing of an earlier soak."""
        folder = self.root / self.stage.name / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "models").mkdir(parents=True)
        (folder / "data").symlink_to(origin / "data")
        for model in (origin / "models").iterdir() if (origin / "models").is_dir() else ():
            if f"models/{model.name}" not in self.stage.outputs:
                (folder / "models" / model.name).symlink_to(model)
        (folder / "configs").mkdir()
        for config in self.stage.configs:
            shutil.copyfile(CONFIGS / Path(config).name, folder / config)
        (folder / "configs" / "soak.yaml").write_text(yaml.safe_dump(self._overlay(folder / self.stage.configs[0])))
        return folder

    def _overlay(self, recipe: Path) -> dict[str, Any]:
        """A short run with checkpoints close together, deterministic kernels, and the phases written down."""
        callbacks = yaml.safe_load(recipe.read_text())["trainer"]["callbacks"]
        for callback in callbacks:
            if callback["class_path"].endswith("ResumeCheckpoint"):
                callback["init_args"]["every_n_batches"] = 2
        phases = {"path": "phase", "final": "final.ckpt"}
        callbacks.append({"class_path": "instructlit.tools.soak.phases.Phases", "init_args": phases})
        schedule = {"class_path": "instructlit.models.schedules.CosineToFraction", "init_args": {"final_fraction": 0.1}}
        model, data, steps = {"lr_scheduler": schedule}, {}, self.batches
        if self.stage.name.startswith("ppo"):
            model, data, steps = model | {"minibatch_size": 16}, {"batch_size": 32}, 2 * self.batches
        trainer = {"max_steps": steps, "val_check_interval": 3, "check_val_every_n_epoch": None, "deterministic": True}
        return {
            "model": {"init_args": model},
            "data": {"init_args": data},
            "trainer": trainer | {"callbacks": callbacks},
        }

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        words = [*self.stage.command, "--config", "configs/soak.yaml"]
        for overlay in self.overlays:
            words += ["--config", str(overlay)]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "instructlit", *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
            )

    def _to_the_end(self, folder: Path) -> float:
        """Run the stage without a kill; returns the seconds from its first batch to its end."""
        process = self._start(folder)
        while process.poll() is None and phase_in(folder / "phase") in ("", "start"):
            time.sleep(0.01)
        began = time.monotonic()
        self._check(process.wait(), folder)
        return time.monotonic() - began

    def _kill_and_go_on(self, whole: Path, folder: Path, took: float) -> tuple[list[dict[str, Any]], list[str]]:
        """Kill the run as often as requested; returns where each kill fell, and what differs.

        A run that finishes before all kills are used is compared there, and another one is started. The first
        difference ends the soak.
        """
        falls: list[dict[str, Any]] = []
        fruitless = 0
        while True:
            (folder / "phase").unlink(missing_ok=True)
            process = self._start(folder)
            before = _last(folder)
            if len(falls) < self.kills and self._wait_for_moment(process, folder, took, fruitless, before):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                fruitless = fruitless + 1 if _last(folder) == before else 0
                falls.append({"phase": phase_in(folder / "phase") or "start", "after_batch": _last(folder)})
                print(f"kill {len(falls)} of {self.kills}: {falls[-1]}", file=sys.stderr, flush=True)
                continue
            self._check(process.wait(), folder)
            found = differences(whole, folder, self.stage.name)
            if found or len(falls) == self.kills:  # if something differs, both runs are kept for inspection
                return falls, found
            self._fresh(self.root / "ancestors", folder.name)

    def _wait_for_moment(
        self, process: subprocess.Popen[bytes], folder: Path, took: float, fruitless: int, before: int
    ) -> bool:
        """Wait for the moment of a kill; False if the run ends before it.

        The moment is a random time after the first batch, and for most kills the next entry into a random phase after
        that. After several kills without a new checkpoint, the run first continues until it has written one.
        """
        phase = folder / "phase"
        aim = self.random.choice(AIMS[self.stage.name]) if self.random.random() < 0.7 else None
        wait = self.random.uniform(0, took / max(2.0, self.kills / 4))
        if aim is None and self.random.random() < 0.2:  # before the first batch: while models and data are read
            until = time.monotonic() + self.random.uniform(0, took)
            while process.poll() is None and time.monotonic() < until and phase_in(phase) in ("", "start"):
                time.sleep(0.01)
            return process.poll() is None
        while process.poll() is None and phase_in(phase) in ("", "start"):
            time.sleep(0.01)
        until = time.monotonic() + wait
        while process.poll() is None and (
            time.monotonic() < until or (fruitless >= FRUITLESS and _last(folder) <= before)
        ):
            time.sleep(0.002)
        while aim is not None and process.poll() is None and phase_in(phase) != aim:
            time.sleep(0.0002)
        return process.poll() is None

    def _check(self, status: int, folder: Path) -> None:
        if status != 0:
            tail = "".join(f"    {line}\n" for line in (folder / "log").read_text(errors="replace").splitlines()[-15:])
            raise UserError(
                f"stage {self.stage.name} ended with status {status}; its last lines:\n{tail.rstrip()}",
                where=str(folder / "log"),
            )


def _ancestors(stage: Stage, plan: list[Stage]) -> list[Stage]:
    """The stages whose results this one reads, directly or not, in order."""
    needed, names = [], set(stage.needs)
    for other in reversed(plan):
        if other.name in names:
            names |= set(other.needs)
            needed.append(other)
    return needed[::-1]


def _last(folder: Path) -> int:
    """The batch of the newest checkpoint under the folder, -1 where there is none."""
    found = [path for resume in folder.glob("checkpoints/*/resume") for path in checkpoints(resume)]
    return max((int(path.name.rpartition("-")[2]) for path in found), default=-1)
