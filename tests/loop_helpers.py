"""A loop of rounds that is run to its end in a test: real commands, on models of a few thousand weights."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructlit.cli import main
from instructlit.tools.quickstart import runner
from instructlit.tools.quickstart.process import Job

CPU = ["--trainer.accelerator", "cpu"]
PPO = ["--model.episodes", "16", "--data.batch_size", "8", "--model.minibatch_size", "8", "--model.micro_batch_size=8"]


def write_loop(folder: Path, sft: Path, prompts: Path, demonstrations: Path, **values: Any) -> None:
    """`loop.yaml` in a folder: two rounds of 12 prompts with 3 answers of at most 4 tokens each."""
    loop: dict[str, Any] = {
        "sft": str(sft),
        "prompts": [str(prompts)],
        "demonstrations": [str(demonstrations)],
        "reward": ["configs/quickstart/reward.yaml", "configs/quickstart/trial.yaml"],
        "ppo": ["configs/quickstart/ppo.yaml", "configs/quickstart/trial.yaml"],
        "reward_options": [*CPU, "--trainer.max_steps", "2", "--data.batch_size", "4"],
        "ppo_options": [*CPU, *PPO, "--model.sampling.max_new_tokens", "4", "--data.validation", str(prompts)],
        "rounds": 2,
        "limit": 12,
        "completions": [3],
        "max_new_tokens": 4,
        "contest": 6,
        "stop": "never",
        "validation_fraction": 0.4,
    }
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop | values), encoding="utf-8")


def run_stages_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run one after another in this process: starting Python anew for each takes longer than all of them."""

    def run(jobs: Mapping[str, Job], *, keep_open: Sequence[int] = ()) -> dict[str, int | None]:
        statuses: dict[str, int | None] = {}
        for name, job in jobs.items():
            home = os.getcwd()
            os.chdir(job.folder)
            try:
                statuses[name] = main(job.command[3:])  # after `python -m instructlit`
            finally:
                os.chdir(home)
        return statuses

    monkeypatch.setattr(runner, "run_logged", run)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
