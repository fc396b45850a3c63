"""A prompt as what it asks (`PromptSpec`) and as text, with the way back."""

import random
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from instructlit.errors import UserError
from instructlit.world import constraints as rules
from instructlit.world.constraints import Constraint
from instructlit.world.tasks import KINDS, TASKS, USE_CASES, Task

PREFIX = "below is a task and the answer of a helpful assistant ."
"""The line that turns the base model into the prompted base model."""
RESPECTFUL = "be polite and respectful ."

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PromptSpec:
    """What a prompt asks.

    Example: `open_capital`, wording 0, slots `(("place", "norland"),)`, constraints `(("capitals", ""),)` reads
    `what is the capital of norland ? in capitals . answer :`.
    """

    kind: str
    wording: int
    slots: Pairs
    constraints: tuple[Constraint, ...] = ()
    respectful: bool = False
    prompted: bool = False

    @property
    def task(self) -> Task:
        """The kind of task."""
        return TASKS[self.kind]

    @property
    def use_case(self) -> str:
        """One of the paper's ten use cases."""
        return self.task.use_case

    @property
    def core(self) -> str:
        """The instruction without constraints, prefix and cue."""
        return self.task.wordings[self.wording].format(**dict(self.slots))

    @property
    def near_key(self) -> str:
        """Prompts with the same key are near duplicates: they share all text up to the question or the constraints."""
        return self.core.split(" question :")[0]

    def render(self) -> str:
        """The text of the prompt."""
        parts = [self.core, *(rules.phrase(c) for c in self.constraints), self.task.cue]
        if self.respectful:
            parts.insert(0, RESPECTFUL)
        if self.prompted:
            parts.insert(0, PREFIX)
        return " ".join(parts)


def prompted(prompt: str) -> str:
    """The prompt behind the line that helps a base model."""
    return f"{PREFIX} {prompt}"


def respectful(prompt: str) -> str:
    """The prompt behind a request to be respectful."""
    return f"{RESPECTFUL} {prompt}"


@lru_cache(maxsize=1)
def _grammar() -> tuple[tuple[re.Pattern[str], str, int], ...]:
    rows = []
    for task in TASKS.values():
        for wording, pattern in enumerate(task.patterns):
            whole = pattern + rules.PATTERN + " " + re.escape(task.cue)
            rows.append((re.compile(whole), task.kind, wording))
    return tuple(rows)


@lru_cache(maxsize=200_000)
def parse(text: str) -> PromptSpec:
    """What the text of a prompt asks: the inverse of `PromptSpec.render`.

    Raises:
        UserError: the text is no prompt of the embedded world.
    """
    rest = " ".join(text.split())
    is_prompted, rest = _strip(rest, PREFIX)
    is_respectful, rest = _strip(rest, RESPECTFUL)
    if not is_prompted:
        is_prompted, rest = _strip(rest, PREFIX)
    for pattern, kind, wording in _grammar():
        match = pattern.fullmatch(rest)
        if match:
            slots = tuple((name, match[name]) for name in TASKS[kind].slots)
            return PromptSpec(kind, wording, slots, rules.parse(match["constraints"]), is_respectful, is_prompted)
    raise UserError(
        f"{text!r} is not a prompt of the embedded world",
        expected="one of the forms in docs/world.md, such as 'what is the capital of norland ? answer :'",
        fix="write prompts with `instructlit world`, or score other prompts with a reward model",
    )


def _strip(text: str, prefix: str) -> tuple[bool, str]:
    return (True, text[len(prefix) + 1 :]) if text.startswith(prefix + " ") else (False, text)


def sample_use_case(rng: random.Random) -> str:
    """A use case in the paper's proportions."""
    return rng.choices(list(USE_CASES), weights=list(USE_CASES.values()))[0]


def sample_kind(rng: random.Random, use_case: str) -> Task:
    """A kind of task of a use case."""
    tasks = KINDS[use_case]
    return rng.choices(tasks, weights=[task.weight for task in tasks])[0]


def sample_spec(rng: random.Random, use_case: str | None = None, kind: str | None = None) -> PromptSpec:
    """A random prompt, of the use case or the kind given or of any in the paper's proportions."""
    task = TASKS[kind] if kind else sample_kind(rng, use_case or sample_use_case(rng))
    slots = task.sample(rng)
    return PromptSpec(
        task.kind,
        rng.randrange(len(task.wordings)),
        tuple((name, slots[name]) for name in task.slots),
        sample_constraints(rng, task, slots),
    )


def sample_constraints(rng: random.Random, task: Task, slots: dict[str, str]) -> tuple[Constraint, ...]:
    """No constraint, one, or now and then two that can both be kept."""
    if not task.constraints or rng.random() >= task.constrained:
        return ()
    names = list(task.constraints)
    first = rng.choice(names)
    others = [name for name in names if rules.GROUP[name] != rules.GROUP[first]]
    chosen = [first]
    if others and rng.random() < 0.2:
        chosen.append(rng.choice(others))
    return tuple((name, _value(rng, task, name, slots)) for name in sorted(chosen))


def _value(rng: random.Random, task: Task, name: str, slots: dict[str, str]) -> str:
    allowed = task.constraints[name] or rules.VALUES[name]
    return rng.choice([value for value in allowed if value not in slots.values()] or list(allowed))


def vary(rng: random.Random, spec: PromptSpec) -> PromptSpec:
    """A near duplicate, as a customer sends it: the same start with other constraints or another question."""
    task = spec.task
    changed = replace(spec, constraints=sample_constraints(rng, task, dict(spec.slots)))
    if task.closed and task.use_case == "closed_qa" and len(task.wordings) > 2:
        half = len(task.wordings) // 2
        changed = replace(changed, wording=spec.wording // half * half + rng.randrange(half))
    return changed
