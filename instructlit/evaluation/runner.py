"""The evaluation itself: every model replies, judges are asked, tasks measure. What is finished is on disk at once."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instructlit.errors import UserError
from instructlit.evaluation.judging import Desk, Judge, plan_text
from instructlit.evaluation.measures import Outcome, Study
from instructlit.evaluation.requests import Reply, Request, as_row, from_row, key
from instructlit.evaluation.store import Store
from instructlit.evaluation.subjects import Subject
from instructlit.evaluation.task import Task

Tell = Callable[[str], None]


@dataclass
class Results:
    """What an evaluation found.

    Args:
        models: name and what it is, in the order of the table; those that could not reply are left out.
        outcomes: by task.
        failures: what could not be measured and why, by `model …` or `task …`.
        judges: for each judge its title and how many of its verdicts were unreadable and pending.
        baseline: the model of preferences.
        base: the model of the alignment tax.
        plan: what was still to be asked of judges, in words.
    """

    models: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    judges: dict[str, dict[str, str | int]] = field(default_factory=dict)
    baseline: str = ""
    base: str = ""
    plan: list[str] = field(default_factory=list)


@dataclass
class Evaluation:
    """Models, tasks and judges brought together.

    Args:
        subjects: the models.
        tasks: by name.
        judges: by name.
        folder: where replies and verdicts are kept.
        baseline: the model that preferences are measured against.
        base: the model that the alignment tax is measured from.
        seed: of resampling.
        tell: is told how far things are.
        on_task: called after each task with all that was found so far.
    """

    subjects: Sequence[Subject]
    tasks: Mapping[str, Task]
    judges: Mapping[str, Judge]
    folder: Path
    baseline: str = ""
    base: str = ""
    seed: int = 0
    tell: Tell = print
    on_task: Callable[[Results], None] = lambda results: None

    def run(self, dry: bool = False) -> Results:
        """Everything; with `dry` no model is loaded and no judge is asked, and only the plan is made."""
        results = Results(baseline=self.baseline, base=self.base)
        requests = self._requests(results)
        replies = self._replies(requests, results, dry)
        verdicts = Store(self.folder / "verdicts.jsonl")
        plan = Desk(self.judges, verdicts, planning=True)
        for name in requests:
            self._measure(name, requests[name], plan, replies, results, keep=False)
        results.plan = plan_text(plan)
        for line in results.plan:
            self.tell(f"to be asked: {line}")
        if not dry:
            desk = Desk(self.judges, verdicts)
            for name in requests:
                self._measure(name, requests[name], desk, replies, results, keep=True)
                results.judges = {
                    judge: {
                        "title": self.judges[judge].title,
                        "unreadable": desk.unreadable[judge],
                        "pending": desk.pending[judge],
                        "example": desk.examples.get(judge, ""),
                    }
                    for judge in self.judges
                }
                self.on_task(results)
        verdicts.close()
        return results

    def _requests(self, results: Results) -> dict[str, list[Request]]:
        """The requests of the tasks that can be had."""
        found: dict[str, list[Request]] = {}
        for name, task in self.tasks.items():
            with _Failure(f"task {name}", results, self.tell):
                found[name] = list(task.requests())
        return found

    def _replies(
        self, requests: Mapping[str, Sequence[Request]], results: Results, dry: bool
    ) -> dict[str, dict[str, Reply | None]]:
        """For each model the reply to every request by its key."""
        wanted = {key(request): request for own in requests.values() for request in own}
        store = Store(self.folder / "replies.jsonl")
        replies: dict[str, dict[str, Reply | None]] = {}
        for subject in self.subjects:
            with _Failure(f"model {subject.name}", results, self.tell):
                replies[subject.name] = self._of(subject, wanted, store, dry)
                results.models[subject.name] = subject.told
            subject.release()
        store.close()
        return replies

    def _of(self, subject: Subject, wanted: Mapping[str, Request], store: Store, dry: bool) -> dict[str, Reply | None]:
        prefix = subject.identity() + "-"
        missing = [name for name in wanted if prefix + name not in store]
        found: dict[str, Reply | None] = {
            name: None if (row := store.get(prefix + name)) is None else from_row(row) for name in wanted
        }
        if not missing or (dry and subject.stored):
            if missing:
                self.tell(f"{subject.name}: {len(missing)} of {len(wanted)} replies to be made")
            return found
        done = len(wanted) - len(missing)
        for count, (index, reply) in enumerate(subject.replies([wanted[name] for name in missing]), start=1):
            found[missing[index]] = reply
            if subject.stored:
                row = None if reply is None else as_row(reply)
                store.put(prefix + missing[index], row, model=subject.name)
            if count % 200 == 0 or count == len(missing):
                self.tell(f"{subject.name}: {done + count} of {len(wanted)} replies")
        return found

    def _measure(
        self,
        name: str,
        requests: Sequence[Request],
        desk: Desk,
        replies: Mapping[str, Mapping[str, Reply | None]],
        results: Results,
        keep: bool,
    ) -> None:
        told = f"task {name}"
        if told in results.failures:
            return
        with _Failure(told, results, self.tell if keep or not desk.planning else lambda text: None):
            keys = [key(request) for request in requests]
            models = [subject.name for subject in self.subjects if subject.name in results.models]
            own = {model: [replies[model][k] for k in keys] for model in models}
            study = Study(models, own, desk, self.baseline, self.base, self.seed)
            outcome = self.tasks[name].measure(study)
            if keep:
                results.outcomes[name] = outcome
                self.tell(f"measured {name}")


class _Failure:
    """Keeps an error of one model or task, as a message, and lets the others go on."""

    def __init__(self, told: str, results: Results, tell: Tell):
        self.told, self.results, self.tell = told, results, tell

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        text = str(error)
        if not isinstance(error, UserError):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            if os.environ.get("INSTRUCTLIT_DEBUG"):
                traceback.print_exception(error)
        self.results.failures[self.told] = text
        self.tell(f"{self.told} was left out: {text}")
        return True
