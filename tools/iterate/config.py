"""The config of a loop: one flat mapping, its options those of `Loop`."""

import shlex
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from instructlit.cli import split_command
from instructlit.cli.check import unfit, unknown
from instructlit.cli.config import find, read
from instructlit.cli.types import describe
from instructlit.errors import UserError, require
from instructlit.redaction import without_secrets

PEOPLE = "people"
ROUNDS = "rounds"
"""In an ensemble: the reward models of all rounds before."""


@dataclass(frozen=True)
class Loop:
    """What every round does.

    Args:
        sft: the SFT model: the first policy, the start of every reward model, and the reference of PPO's KL.
        prompts: files of prompts that are answered and labelled.
        reward: configs of the reward model's stage, laid over each other; model and data are set by the loop.
        ppo: configs of the PPO stage; models and prompts are set by the loop.
        label: `people`, whose labels come into `rounds/N/labels.jsonl` or are given in the `database`; or a command
            that takes a file of tasks and `--output`, as `judge reward:models/gold` or `world rank --world 1` does.
        database: labelling database of the people, a file or the URL of a PostgreSQL server without a password: tasks
            are put there, and labels read from there.
        labelers: labels that each task needs; `people` are waited for until they are there.
        rounds: the most rounds.
        start: where PPO begins: from the `sft` model, or from the `last` policy.
        policies: who answers: `last` (the policy of the round before) and `sft`, or model folders, each with `@` and a
            temperature where that is not 1.
        limit: prompts labelled in a round: one number, or one for each round, the last of them for all that follow.
        completions: answers to each prompt: one number, or the least and the most.
        select: `random`, evenly by `use_case`, or those on whose answers the `ensemble` disagrees most.
        ensemble: reward models for that: folders, and `rounds` for those of all rounds before. A round for which there
            are fewer than two selects at random.
        pool: prompts that are answered before the disagreement is looked at; all unless given.
        use_cases: only prompts of these use cases.
        max_new_tokens: longest answer.
        batch_size: answers sampled together.
        validation_fraction: share of a round's prompts that the reward models are measured on.
        weights: how often a labeler's comparisons come in an epoch, 1 for those who are not named.
        min_agreement: leave out tasks whose labelers order less than this share of the pairs alike.
        age_decay: weight of a round's comparisons for each round that they are older than the newest: 1 keeps all
            alike.
        demonstrations: files of demonstrations whose mean score becomes 0.
        ppo_prompts: files of prompts for PPO; those of `prompts` unless given.
        ppo_validation: files of prompts for PPO's validation.
        contest_prompts: files of prompts on which a policy is compared with the one before; those of
            `ppo_validation`, or `prompts`, unless given.
        contest: prompts of that comparison; 0 leaves it out, and then no round is the last for want of a gain.
        stop: `no_gain` ends the loop when the 95 % interval of the preference over the policy before does not lie above
            one half, `worse` when it lies below, `never` goes on to the last round.
        seed: seed of everything; every round has one of its own that follows from it.
        reward_folder: where the reward model's config leaves its model.
        policy_folder: where PPO's config leaves its policy.
        reward_options: further words for the reward model's `fit`.
        ppo_options: further words for PPO's `fit`.
    """

    sft: str
    prompts: list[str]
    reward: list[str]
    ppo: list[str]
    label: str = PEOPLE
    database: str | None = None
    labelers: int = 1
    rounds: int = 3
    start: Literal["sft", "last"] = "sft"
    policies: list[str] = field(default_factory=lambda: ["last"])
    limit: int | list[int] = 1000
    completions: list[int] = field(default_factory=lambda: [4, 9])
    select: Literal["random", "use_case", "disagreement"] = "random"
    ensemble: list[str] = field(default_factory=lambda: [ROUNDS])
    pool: int | None = None
    use_cases: list[str] | None = None
    max_new_tokens: int = 256
    batch_size: int = 64
    validation_fraction: float = 0.1
    weights: dict[str, float] | None = None
    min_agreement: float | None = None
    age_decay: float = 1.0
    demonstrations: list[str] | None = None
    ppo_prompts: list[str] | None = None
    ppo_validation: list[str] | None = None
    contest_prompts: list[str] | None = None
    contest: int = 300
    stop: Literal["no_gain", "worse", "never"] = "no_gain"
    seed: int = 1
    reward_folder: str = "models/reward"
    policy_folder: str = "models/ppo"
    reward_options: list[str] = field(default_factory=list)
    ppo_options: list[str] = field(default_factory=list)

    @property
    def limits(self) -> list[int]:
        """Prompts labelled in the first rounds; the last number stands for all further ones."""
        return self.limit if isinstance(self.limit, list) else [self.limit]


def load(files: list[str], changed: dict[str, Any]) -> Loop:
    """The loop of some YAML files, a later one over an earlier, and of options that stand above them.

    Raises:
        UserError: a key that is no option, a value of another type or out of range, a file that is not there.
    """
    loop = composed(files, changed)
    _check(loop)
    return loop


def composed(files: list[str], changed: dict[str, Any]) -> Loop:
    """The same, whatever files it names."""
    hints = get_type_hints(Loop)
    values: dict[str, Any] = {}
    for file in files:
        config = read(file)
        for key, value in config.values.items():
            _check_value(key, value, hints, config.where((key,)))
        values |= config.values
    values |= changed
    for name in (f.name for f in fields(Loop) if f.default is MISSING and f.default_factory is MISSING):
        if not values.get(name):
            raise UserError("is needed and not given", where=name, expected=describe(hints[name]))
    return Loop(**values)


def _check_value(key: str, value: Any, hints: dict[str, Any], where: str) -> None:
    if key not in hints:
        raise unknown(str(key), hints, where)
    if problem := unfit(value, hints[key], where):
        raise problem


def _check(loop: Loop) -> None:
    require("a whole number above 0", rounds=loop.rounds, labelers=loop.labelers)
    if min(loop.limits, default=0) < 1:
        raise UserError(f"found {loop.limit}", where="limit", expected="1 or more in every round")
    if not 0 < loop.age_decay <= 1:
        raise UserError(f"found {loop.age_decay}", where="age_decay", expected="above 0, at most 1")
    if not 0 < loop.validation_fraction < 1:
        raise UserError(f"found {loop.validation_fraction}", where="validation_fraction", expected="between 0 and 1")
    _check_labels(loop)
    for name in [one for one in loop.ensemble if one != ROUNDS] if loop.select == "disagreement" else ():
        if not Path(name).expanduser().is_dir():
            raise UserError("no such model folder", where=f"ensemble: {name}", expected=f"a folder, or `{ROUNDS}`")
        from instructlit.evaluation.reward_scores import check_reward_model  # torch, which most loops do not need here

        check_reward_model(name, f"ensemble: {name}")
    if not Path(loop.sft).expanduser().is_dir():
        raise UserError("no such model folder", where=f"sft: {loop.sft}", fix="train the SFT model first")
    for name in ("prompts", "demonstrations", "ppo_prompts", "ppo_validation", "contest_prompts"):
        for file in getattr(loop, name) or []:
            if not Path(file).expanduser().exists():
                raise UserError("no such file", where=f"{name}: {file}")
    for file in [*loop.reward, *loop.ppo]:
        find(file)


def _check_labels(loop: Loop) -> None:
    if loop.label != PEOPLE:
        split_command(shlex.split(loop.label) or [loop.label])
        if loop.database is not None:
            raise UserError(
                f"`{loop.label}` does not read a database",
                where="database",
                expected=f"label: {PEOPLE}, or no database",
            )
    elif loop.database is not None and without_secrets(loop.database) != loop.database:
        raise UserError(
            "the URL holds a password, and the config is copied into the run folder",
            where="database",
            fix="leave it out, and give it in PGPASSWORD or in ~/.pgpass",
        )
