"""The quickstart as data: which commands run, in which order, what each needs and what it writes.

Every command runs inside the run folder, so that none needs a path from elsewhere: after `cd runs/quickstart` each can
be run as shown.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs" / "quickstart"


EXACT = ("--dtype", "float32", "--batch_size", "512")
"""How the evaluation reads models: tiny models are fast in float32, and the numbers are the same on every device."""


@dataclass(frozen=True)
class Stage:
    """One command of a job.

    The part of its name before the last slash is the folder, inside the run folder, that it runs in and that holds its
    log, stamp and checkpoints: `rounds/2/reward` runs in `rounds/2`.
    """

    name: str
    title: str  # what happens, in a few plain words
    command: tuple[str, ...]  # the arguments after `instructlit`
    needs: tuple[str, ...]  # names of the stages whose results it reads
    outputs: tuple[str, ...]  # what it must have written, relative to the run folder
    configs: tuple[str, ...] = ()  # files that its result depends on, relative to the run folder
    expected_seconds: float = 30.0  # on two CPU cores; only used to estimate the time left

    @property
    def trains(self) -> bool:
        """True for the stages that write checkpoints and can resume from one."""
        return self.command[0] == "fit"

    @property
    def folder(self) -> str:
        """Where it runs, relative to the run folder."""
        return self.name.rpartition("/")[0] or "."

    @property
    def checkpoints(self) -> str:
        """Where a training stage keeps its checkpoints, relative to the run folder."""
        return self.kept("checkpoints")

    @property
    def resume(self) -> str:
        """Where it keeps those that an interrupted run resumes from."""
        return f"{self.checkpoints}/resume"

    @property
    def stamp(self) -> str:
        """Where its stamp is kept, relative to the run folder."""
        return self.kept("stamps", ".json")

    @property
    def log(self) -> str:
        """Where its terminal output goes, relative to the run folder."""
        return self.kept("logs", ".log")

    def kept(self, kind: str, ending: str = "") -> str:
        """Where something of the stage is kept, relative to the run folder: `logs/reward.log`."""
        before, slash, last = self.name.rpartition("/")
        return f"{before}{slash}{kind}/{last}{ending}"

    def shown(self) -> str:
        """The command as a user would type it in the folder it runs in."""
        return shlex.join(("instructlit", *self.command))


def stages(seed: int, trial: bool = False) -> list[Stage]:
    """The stages in order. `trial` lays `trial.yaml` over every training config: a few steps each, as a test."""

    def fit(name: str, title: str, needs: tuple[str, ...], seconds: float) -> Stage:
        configs = (f"configs/{name}.yaml", *(("configs/trial.yaml",) if trial else ()))
        options = [word for config in configs for word in ("--config", config)]
        command = ("fit", *options, "--seed_everything", str(seed))
        models = {"pretrain": ("base",), "ppo": ("ppo", "ppo-ema"), "ppo_ptx": ("ppo_ptx", "ppo_ptx-ema")}
        outputs = tuple(f"models/{model}" for model in models.get(name, (name,)))
        return Stage(name, title, command, needs, outputs, configs, seconds)

    def tool(words: str, title: str, needs: tuple[str, ...], outputs: tuple[str, ...], seconds: float) -> Stage:
        small = ("--trial", "true") if trial else ()
        return Stage(
            words.split()[-1], title, (*words.split(), "--seed", str(seed), *small), needs, outputs, (), seconds
        )

    evaluate = ("evaluate", "--suite", "world", "--output", ".", "--seed", str(seed), *EXACT)
    if trial:
        evaluate += ("--limit", "16")
    return [
        tool("world", "write the embedded world: corpus, prompts, demonstrations", (), ("data/world.json",), 2),
        fit("pretrain", "pretrain a base model on the raw corpus", ("world",), 100),
        fit("sft", "fine-tune it on the labelers' demonstrations", ("pretrain",), 25),
        tool(
            "world label",
            "sample completions and have the labelers rank them",
            ("sft",),
            ("data/comparisons.jsonl", "data/comparisons_validation.jsonl", "data/agreement.json"),
            50,
        ),
        fit("reward", "train a reward model on the rankings", ("label",), 110),
        fit("ppo", "PPO against the reward model", ("reward",), 150),
        fit("ppo_ptx", "PPO with pretraining gradients mixed in", ("reward",), 150),
        Stage(
            "evaluate",
            "let every model answer the test prompts, judge the answers and write the report",
            evaluate,
            ("ppo", "ppo_ptx"),
            ("results.json", "answers.jsonl", "report.html"),
            expected_seconds=60,
        ),
    ]
