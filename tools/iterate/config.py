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
"""In an ensemble: the reward models of all previous rounds."""


@dataclass(frozen=True)
class Loop:
    """Options of a loop.

    Args:
        sft: the SFT model: the first policy, the start of every reward model, and the reference of PPO's KL.
        prompts: files of prompts that are answered and labelled.
        reward: configs of the reward model's stage, later ones overriding earlier; the loop sets model and data.
        ppo: configs of the PPO stage; the loop sets models and prompts.
        label: `people`, whose labels are put into `rounds/N/labels.jsonl` or given in the `database`; or a command that
            takes a file of tasks and `--output`, such as `judge reward:models/gold` or `world rank --world 1`.
        database: labelling database of the people, a file or the URL of a PostgreSQL server without a password: tasks
            are added there, and labels read from there.
        labelers: labels that each task needs from `people`, for which the loop waits; a command is told by an option of
            its own, as in `world rank --labelers 2`.
        rounds: maximum number of rounds.
        start: where PPO starts: from the `sft` model, or from the `last` policy.
        policies: who answers: `last` (the policy of the previous round) and `sft`, or model folders, each with `@` and
            a temperature if that is not 1.
        limit: prompts labelled in a round: one number, or one per round, the last of which applies to all later rounds.
        completions: answers to each prompt: one number, or a minimum and a maximum.
        select: `random`, evenly by `use_case`, or those on whose answers the `ensemble` disagrees most.
        ensemble: reward models for that: folders, and `rounds` for those of all previous rounds. A round with fewer
            than two selects at random.
        pool: number of prompts that are answered before selecting by disagreement; all if not given.
        use_cases: only prompts of these use cases.
        max_new_tokens: maximum length of an answer.
        batch_size: number of answers sampled together.
        validation_fraction: share of a round's prompts that the reward models are measured on.
        weights: how often a labeler's comparisons occur in an epoch, 1 for those not named.
        min_agreement: leave out tasks whose labelers order less than this share of the pairs alike.
        age_decay: factor on the weight of a round's comparisons for each round that they are older than the newest; 1
            weighs all alike.
        demonstrations: files of demonstrations whose mean score becomes 0.
        ppo_prompts: files of prompts for PPO; those of `prompts` if not given.
        ppo_validation: files of prompts for PPO's validation.
        contest_prompts: files of prompts on which a policy is compared with the previous one; those of
            `ppo_validation`, or `prompts`, if not given.
        contest: number of prompts of that comparison; 0 skips it, and then the loop never ends for lack of gain.
        stop: `no_gain` ends the loop when the 95 % interval of the preference over the previous policy is not above one
            half, `worse` when it is below, `never` runs all rounds.
        seed: seed of everything; every round derives its own from it.
        reward_folder: folder in which the reward model's config saves its model.
        policy_folder: folder in which PPO's config saves its policy.
        reward_options: further arguments for the reward model's `fit`.
        ppo_options: further arguments for PPO's `fit`.
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
        """Prompts labelled in the first rounds; the last number applies to all later ones."""
        return self.limit if isinstance(self.limit, list) else [self.limit]


def load(files: list[str], changed: dict[str, Any]) -> Loop:
    """The loop from some YAML files, later ones overriding earlier, and from options that override them all.

    Raises:
        UserError: if a key is not an option, a value has the wrong type or is out of range, or a file is missing.
    """
    loop = composed(files, changed)
    _check(loop)
    return loop


def composed(files: list[str], changed: dict[str, Any]) -> Loop:
    """The same, without checking the files it names."""
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
    if loop.select != "disagreement" and (loop.pool is not None or loop.ensemble != [ROUNDS]):
        raise UserError(
            f"`select: {loop.select}` asks no reward model",
            where="ensemble" if loop.pool is None else "pool",
            expected="it with `select: disagreement` only",
        )
    for name in [one for one in loop.ensemble if one != ROUNDS] if loop.select == "disagreement" else ():
        if not Path(name).expanduser().is_dir():
            raise UserError("no such model folder", where=f"ensemble: {name}", expected=f"a folder, or `{ROUNDS}`")
        from instructlit.evaluation.reward_scores import check_reward_model  # torch: rarely needed

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
        if loop.labelers != 1:
            raise UserError(
                f"`{loop.label}` is not told how many labels a task needs",
                where="labelers",
                expected=f"label: {PEOPLE}, or an option of the command, as in `world rank --labelers 2`",
            )
        if loop.database is not None:
            raise UserError(
                f"`{loop.label}` does not read a database",
                where="database",
                expected=f"label: {PEOPLE}, or no database",
            )
    elif loop.database is not None and without_secrets(loop.database) != loop.database:
        raise UserError(
            "the URL contains a password, and the config is copied into the run folder",
            where="database",
            fix="remove it, and set it in PGPASSWORD or in ~/.pgpass",
        )
