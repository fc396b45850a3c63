"""A round as stages of the quickstart's runner, each run inside the round's folder."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from instructlit.cli.check import options_of
from instructlit.cli.config import Config
from instructlit.tools.iterate.config import PEOPLE, ROUNDS, Loop
from instructlit.tools.iterate.recipes import moved
from instructlit.tools.quickstart.stages import Stage
from instructlit.tools.sources import parse_source, source_name

CONTEST = "contest"
"""The folder of a round in which its policy is compared with the previous one."""


@dataclass(frozen=True)
class Segment:
    """Stages that run unattended, and the labels that must exist before they can."""

    stages: list[Stage]
    waits_for: tuple[str, str] | None = None  # file of tasks and file of labels, relative to the run folder


@dataclass(frozen=True)
class Planner:
    """The stages of a loop.

    Args:
        loop: the options.
        folder: the run folder.
        configs: names of the configs of each training stage in `configs/` of the run folder.
        recipes: the same configs, read and merged.
    """

    loop: Loop
    folder: Path
    configs: dict[str, list[str]]
    recipes: dict[str, Config]

    def round(self, number: int) -> list[Segment]:
        """The segments of one round, in order.

        Raises:
            UserError: if a recipe reads a file that is missing.
        """
        people = self.loop.label == PEOPLE
        home = f"rounds/{number}"
        learning = [self._export(number), self._reward(number), self._ppo(number)]
        if self.loop.contest:
            learning.append(self._contest(number))
        ending = [self._measure(number)]
        if not people:
            first = [self._collect(number), self._label(number, "tasks.jsonl", "label", f"{home}/collect"), *learning]
            if self.loop.contest:
                tasks = f"{CONTEST}/tasks.jsonl"
                first.append(self._label(number, tasks, "judge", f"{home}/contest"))
            return [Segment([*first, *ending])]
        return [
            Segment([self._collect(number)]),
            Segment(learning, (f"{home}/tasks.jsonl", f"{home}/labels.jsonl")),
            Segment(ending, (f"{home}/{CONTEST}/tasks.jsonl", f"{home}/{CONTEST}/labels.jsonl"))
            if self.loop.contest
            else Segment(ending),
        ]

    def policy(self, number: int) -> str:
        """The policy that a round produces, relative to the run folder; that of round 0 is the SFT model."""
        return f"rounds/{number}/{self.loop.policy_folder}" if number else self._from_run(self.loop.sft)

    def _collect(self, number: int) -> Stage:
        loop = self.loop
        words = [
            *("collect", *self._sources(number), "--prompts", *self._inputs(loop.prompts)),
            *("--output", "tasks.jsonl", "--round", str(number)),
            *("--limit", str(loop.limits[min(number, len(loop.limits)) - 1])),
            *("--completions", *map(str, loop.completions), "--seed", self._seed(number)),
            *self._sampling(),
        ]
        if loop.use_cases:
            words += ["--use_cases", *loop.use_cases]
        needs = (f"rounds/{number - 1}/ppo",) if number > 1 else ()
        ensemble = self._ensemble(number) if loop.select == "disagreement" else []
        if len(ensemble) > 1:
            words += ["--select", loop.select, "--ensemble", *ensemble]
            words += ["--pool", str(loop.pool)] if loop.pool is not None else []
        else:
            words += ["--select", "random" if loop.select == "disagreement" else loop.select]
        return self._stage(number, "collect", "sample answers for the labelers", words, needs, ("tasks.jsonl",))

    def _label(self, number: int, tasks: str, name: str, after: str) -> Stage:
        labels = tasks.replace("tasks", "labels")
        words = [*self._label_words(), "--output", labels, tasks]  # the last option may take any number of words
        title = "have the answers ranked" if name == "label" else "have the policies compared"
        return self._stage(number, name, title, words, (after,), (labels,))

    def _export(self, number: int) -> Stage:
        loop, home = self.loop, f"rounds/{number}"
        words = ["labels", "export", "labels.jsonl", "--tasks", "tasks.jsonl", "--output", "data"]
        words += ["--validation_fraction", str(loop.validation_fraction)]
        if loop.weights:
            words += ["--weights", json.dumps(loop.weights)]
        if loop.min_agreement is not None:
            words += ["--min_agreement", str(loop.min_agreement)]
        outputs = ("data/comparisons.jsonl", "data/comparisons_validation.jsonl")
        people = loop.label == PEOPLE
        needs = (f"{home}/collect",) if people else (f"{home}/label",)
        given = (f"{home}/labels.jsonl",) if people else ()
        return self._stage(number, "export", "turn the labels into comparisons", words, needs, outputs, given)

    def _reward(self, number: int) -> Stage:
        loop = self.loop
        ages = [
            {
                "path": f"../{r}/data/comparisons.jsonl" if r != number else "data/comparisons.jsonl",
                "weight": round(loop.age_decay ** (number - r), 6),
            }
            for r in range(1, number + 1)
        ]
        held_out = [source["path"].replace("comparisons.jsonl", "comparisons_validation.jsonl") for source in ages]
        options = {
            "model.init_args.model.path": self._input(loop.sft),
            "data.init_args.tokenizer": self._input(loop.sft),
            "data.init_args.train": json.dumps(ages),
            "data.init_args.validation": json.dumps(held_out),
        }
        if loop.demonstrations:
            options["data.init_args.demonstrations"] = json.dumps(self._inputs(loop.demonstrations))
        needs = tuple(f"rounds/{r}/export" for r in range(1, number + 1))
        title = "train a reward model on the comparisons of all rounds"
        words = self._fit("reward", number, options, loop.reward_options)
        return self._stage(number, "reward", title, words, needs, (loop.reward_folder,), self._told("reward"))

    def _ppo(self, number: int) -> Stage:
        loop = self.loop
        again = loop.start == "last" and number > 1
        options = {
            "model.init_args.policy.path": f"../../{self.policy(number - 1)}" if again else self._input(loop.sft),
            "model.init_args.value.path": loop.reward_folder,
            "model.init_args.reward.init_args.model.path": loop.reward_folder,
            "data.init_args.tokenizer": self._input(loop.sft),
            "data.init_args.train": json.dumps(self._inputs(loop.ppo_prompts or loop.prompts)),
        }
        if again or self.recipes["ppo"].get(("model", "init_args", "reference")):
            options["model.init_args.reference.path"] = self._input(loop.sft)
        if loop.ppo_validation:
            options["data.init_args.validation"] = json.dumps(self._inputs(loop.ppo_validation))
        needs = (f"rounds/{number}/reward", *((f"rounds/{number - 1}/ppo",) if again else ()))
        title = f"PPO from {'the last policy' if again else 'the SFT model'}"
        words = self._fit("ppo", number, options, loop.ppo_options)
        return self._stage(number, "ppo", title, words, needs, (loop.policy_folder,), self._told("ppo"))

    def _contest(self, number: int) -> Stage:
        loop = self.loop
        files = self._inputs(loop.contest_prompts or loop.ppo_validation or loop.prompts)
        words = [
            *("collect", loop.policy_folder, f"../../{self.policy(number - 1)}", "--prompts", *files),
            *("--output", f"{CONTEST}/tasks.jsonl", "--kind", "evaluation", "--round", str(number)),
            *("--limit", str(loop.contest), "--seed", self._seed(number), *self._sampling()),
        ]
        title = "answer the same prompts with the policy and the previous one"
        needs = (f"rounds/{number}/ppo",)
        return self._stage(number, "contest", title, words, needs, (f"{CONTEST}/tasks.jsonl",))

    def _measure(self, number: int) -> Stage:
        loop, home = self.loop, f"rounds/{number}"
        words = ["iterate", "measure", str(number), "--reward", loop.reward_folder, "--data", "data"]
        needs, given = [f"{home}/reward"], ()
        if number > 1:
            words += [
                "--reward_before",
                f"../{number - 1}/{loop.reward_folder}",
                "--data_before",
                f"../{number - 1}/data",
            ]
            needs.append(f"rounds/{number - 1}/reward")
        if loop.contest:
            words += ["--contest", f"{CONTEST}/labels.jsonl", "--contest_tasks", f"{CONTEST}/tasks.jsonl"]
            words += ["--policy", loop.policy_folder, "--policy_before", f"../../{self.policy(number - 1)}"]
            people = loop.label == PEOPLE
            needs.append(f"{home}/contest" if people else f"{home}/judge")
            given = (f"{home}/{CONTEST}/labels.jsonl",) if people else ()
        title = "measure the reward models on the new answers, and the policy against the previous one"
        return self._stage(number, "measure", title, words, tuple(needs), ("round.json",), given)

    def _stage(
        self,
        number: int,
        name: str,
        title: str,
        words: Sequence[str],
        needs: tuple[str, ...],
        outputs: tuple[str, ...],
        configs: tuple[str, ...] = (),
    ) -> Stage:
        home = f"rounds/{number}"
        made = tuple(f"{home}/{output}" for output in outputs)
        return Stage(f"{home}/{name}", title, tuple(words), needs, made, configs, SECONDS.get(name, 30.0))

    def _fit(self, name: str, number: int, options: dict[str, str], further: Sequence[str]) -> list[str]:
        on_line = [*options, *dict(options_of(further, lambda _: False))]
        options = moved(self.recipes[name], on_line, self._input) | options
        layers = [word for config in self.configs[name] for word in ("--config", f"../../configs/{config}")]
        given = [word for option, value in options.items() for word in (f"--{option}", value)]
        return ["fit", *layers, "--seed_everything", self._seed(number), *given, *further]

    def _told(self, name: str) -> tuple[str, ...]:
        return tuple(f"configs/{config}" for config in self.configs[name])

    def _sampling(self) -> list[str]:
        return ["--max_new_tokens", str(self.loop.max_new_tokens), "--batch_size", str(self.loop.batch_size)]

    def _sources(self, number: int) -> list[str]:
        """The policies that answer, as seen from a round's folder."""
        found = []
        for text in self.loop.policies:
            name, temperature = parse_source(text)
            if name == "last":
                path = f"../../{self.policy(number - 1)}"
            else:
                path = self._input(self.loop.sft if name == "sft" else name)
            found.append(source_name(path, temperature))
        return list(dict.fromkeys(found))

    def _ensemble(self, number: int) -> list[str]:
        """The reward models whose disagreement selects prompts, as seen from a round's folder."""
        found = []
        for name in self.loop.ensemble:
            if name == ROUNDS:
                found += [f"../{r}/{self.loop.reward_folder}" for r in range(1, number)]
            else:
                found.append(self._input(name))
        return list(dict.fromkeys(found))

    def _label_words(self) -> list[str]:
        """The labelling command; paths in it, also after `:` and `=`, are rewritten as seen from a round's folder.

        A judge is named by its path: its labels keep the path in the config, wherever the rounds are.
        """
        given = shlex.split(self.loop.label)
        named = [at for at, word in enumerate(given) if word.partition("=")[0] == "--labeler"]
        names = {*named, *(at + 1 for at in named if "=" not in given[at])}
        words = [word if at in names else self._label_word(word) for at, word in enumerate(given)]
        if given[0] == "judge" and not named:
            moved = [old for old, new in zip(given, words, strict=True) if old != new]
            moved.sort(key=lambda word: ":" not in word.partition("=")[0])  # KIND:PATH is the judge; else an option is
            words += ["--labeler", self._parted(moved[0])[1]] if moved else []
        return words

    def _label_word(self, word: str) -> str:
        head, path = self._parted(word)
        return f"{head}{self._input(path)}" if head or "/" in path else word

    @staticmethod
    def _parted(word: str) -> tuple[str, str]:
        """`reward:models/gold` as `reward:` and `models/gold`, an option as `model=` and its value."""
        at = max(word.rfind(":"), word.rfind("=")) + 1
        return word[:at], word[at:]

    def _seed(self, number: int) -> str:
        return str(self.loop.seed * 1000 + number)

    def _from_run(self, path: str) -> str:
        return os.path.relpath(Path(path).expanduser(), self.folder)

    def _input(self, path: str) -> str:
        """A path or glob of the config as seen from a round's folder; a Hub name stays unchanged."""
        there = Path(path).expanduser().exists() or glob(str(Path(path).expanduser()))
        return f"../../{self._from_run(path)}" if there else path

    def _inputs(self, paths: Sequence[str]) -> list[str]:
        return [self._input(path) for path in paths]


SECONDS = {"reward": 145.0, "ppo": 150.0, "collect": 30.0, "contest": 15.0}
"""Durations of the stages on two CPU cores in the embedded world: used only to estimate the time left."""
