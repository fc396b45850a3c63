"""Runs an evaluation: every model replies, judges are asked, tasks measure. Each result is saved at once."""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from instructlit.errors import UserError, class_path, counted
from instructlit.evaluation.judging import Desk, Judge, plan_text
from instructlit.evaluation.measures import Outcome, Study
from instructlit.evaluation.requests import Ask, Reply, Request, as_row, from_row
from instructlit.evaluation.store import Store
from instructlit.evaluation.subjects import Subject
from instructlit.evaluation.task import Task

Tell = Callable[[str], None]
Replies = dict[str, dict[str, Reply | None]]
"""By model and the key of a request."""


@dataclass
class Results:
    """The results of an evaluation.

    Args:
        models: name and description, in the order of the table; those that failed are left out.
        titles: a model's name in the report, if it differs.
        seed: seed of the resampling.
        suite: the name of the suite.
        outcomes: by task.
        failures: what could not be measured and why, by `model …` or `task …`.
        judges: for each judge its title and how many of its verdicts were unreadable and pending.
        baseline: the model that preferences are measured against.
        base: the model that the alignment tax is measured from.
        plan: what judges were still to be asked, in words.
        unmade: replies that a dry run did not make; the plan does not include what judges will be asked about them.
        unasked: judges that no task asks anything.
    """

    models: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    suite: str = ""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    judges: dict[str, dict[str, str | int]] = field(default_factory=dict)
    baseline: str = ""
    base: str = ""
    plan: list[str] = field(default_factory=list)
    unmade: int = 0
    unasked: list[str] = field(default_factory=list)

    def title(self, row: str) -> str:
        """The name of a row of a table."""
        return self.titles.get(row, row)


@dataclass
class Evaluation:
    """An evaluation of models on tasks, with judges.

    Args:
        subjects: the models.
        tasks: by name.
        judges: by name.
        folder: where replies and verdicts are kept.
        baseline: the model that preferences are measured against.
        base: the model that the alignment tax is measured from.
        seed: seed of the resampling.
        suite: the name of the suite, for the report.
        titles: a model's name in the report, if it differs.
        tell: called with progress messages.
        on_task: called after each task with the results so far.
    """

    subjects: Sequence[Subject]
    tasks: Mapping[str, Task]
    judges: Mapping[str, Judge]
    folder: Path
    baseline: str = ""
    base: str = ""
    seed: int = 0
    suite: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    tell: Tell = print
    on_task: Callable[[Results], None] = lambda results: None

    def run(self, dry: bool = False) -> Results:
        """Runs everything; with `dry` no model is loaded and no judge is asked, and only the plan is made."""
        results = Results(
            titles=dict(self.titles), seed=self.seed, suite=self.suite, baseline=self.baseline, base=self.base
        )
        verdicts = Store(self.folder / "verdicts.jsonl")
        plan = Desk(self.judges, verdicts, planning=True)
        requests = self._requests(results, plan)
        asked = {subject.name: [r for own in requests.values() for r in own] for subject in self.subjects}
        replies = self._replies(asked, results, dry)
        further = self._further(requests, replies, results, plan, dry)

        def measure(name: str, desk: Desk) -> None:
            study = self._study(requests[name], replies, results, desk, further.get(name, {}))
            self._measure(name, study, results)

        last: dict[str, str] = {}  # for each judge, the last task with new questions for it
        for name in requests:
            before = {judge: len(questions) for judge, questions in plan.planned.items()}
            measure(name, plan)
            last |= {judge: name for judge, own in plan.planned.items() if len(own) > before.get(judge, 0)}
        results.plan, results.unasked = plan_text(plan), [name for name in self.judges if name not in plan.planned]
        for line in results.plan:
            self.tell(f"to be asked: {line}")
        if not dry:
            desk = Desk(self.judges, verdicts)
            for name in requests:
                measure(name, desk)
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
                for judge in self.judges:
                    if last.get(judge, name) == name:
                        self.judges[judge].release()
        verdicts.close()
        return results

    def _requests(self, results: Results, desk: Desk) -> dict[str, list[Request]]:
        """The requests of the tasks that can be run and judged."""
        found: dict[str, list[Request]] = {}
        for name, task in self.tasks.items():
            with _recorded(f"task {name}", results, self.tell):
                for judge in task.judges_asked():
                    desk.check(judge)
                requests = list(task.requests())
                if wrong := [request for request in requests if not isinstance(request, Request)]:
                    raise UserError(
                        f"`requests` returned {wrong[0]!r:.60}",
                        where=class_path(type(task)),
                        expected="only `Ask` and `Weigh`",
                    )
                found[name] = requests
        return found

    def _replies(self, asked: Mapping[str, Sequence[Request]], results: Results, dry: bool) -> Replies:
        """Every model's replies to its requests; a model that fails is left out from then on."""
        store = Store(self.folder / "replies.jsonl")
        replies: Replies = {}
        for subject in self.subjects:
            with _recorded(f"model {subject.name}", results, self.tell):
                if subject.name in asked and self._missing(subject, asked[subject.name], store)[2]:
                    subject.check()
        for subject in self.subjects:
            if f"model {subject.name}" in results.failures or subject.name not in asked:
                continue
            with _recorded(f"model {subject.name}", results, self.tell):
                replies[subject.name] = self._of(subject, asked[subject.name], store, results, dry)
                results.models[subject.name] = subject.told
            subject.release()
        store.close()
        return replies

    def _of(
        self, subject: Subject, asked: Sequence[Request], store: Store, results: Results, dry: bool
    ) -> dict[str, Reply | None]:
        """One model's replies, by the keys of the requests as tasks make them."""
        own, names, missing = self._missing(subject, asked, store)
        found: dict[str, Reply | None] = {
            name: None if (row := store.get(names[name])) is None else from_row(row) for name in own
        }
        if not missing or (dry and subject.stored):
            if missing:
                results.unmade += len(missing)
                self.tell(f"{subject.name}: {len(missing):,} of {counted(len(own), 'reply', 'replies')} to be made")
            return found
        done = len(own) - len(missing)
        for count, (index, reply) in enumerate(subject.replies([own[name] for name in missing]), start=1):
            found[missing[index]] = reply
            if subject.stored:
                store.put(names[missing[index]], None if reply is None else as_row(reply), model=subject.name)
            if count % 200 == 0 or count == len(missing):
                self.tell(f"{subject.name}: {done + count:,} of {counted(len(own), 'request')}")
        return found

    @staticmethod
    def _missing(
        subject: Subject, asked: Sequence[Request], store: Store
    ) -> tuple[dict[str, Request], dict[str, str], list[str]]:
        """By the keys of requests as tasks make them: the request as the model gets it, the key of its reply in the
        store, and which replies are missing."""
        own = {request.key: subject.asked(request) for request in asked}
        prefix = subject.identity() + "-"
        names = {name: prefix + request.key for name, request in own.items()}
        missing = [name for name in own if names[name] not in store]
        begun = {request.stream for name in missing if isinstance(request := own[name], Ask) and request.stream}
        if begun:  # a stream is sampled from its beginning, or its random numbers would differ
            lacking = set(missing)
            missing = [name for name in own if name in lacking or getattr(own[name], "stream", "") in begun]
        return own, names, missing

    def _further(
        self, requests: Mapping[str, Sequence[Request]], replies: Replies, results: Results, desk: Desk, dry: bool
    ) -> dict[str, dict[str, list[Reply | None]]]:
        """By task and model the replies to the further requests, which depend on the first replies."""
        wanted: dict[str, Mapping[str, Sequence[Request]]] = {}
        for name, own in requests.items():
            with _recorded(f"task {name}", results, self.tell):
                wanted[name] = self.tasks[name].further(self._study(own, replies, results, desk, {}))
        asked: dict[str, list[Request]] = {}
        for own in wanted.values():
            for model, more in own.items():
                asked.setdefault(model, []).extend(more)
        given = self._replies({model: more for model, more in asked.items() if more}, results, dry)
        return {
            name: {model: [given.get(model, {}).get(r.key) for r in more] for model, more in own.items()}
            for name, own in wanted.items()
        }

    def _study(
        self,
        requests: Sequence[Request],
        replies: Replies,
        results: Results,
        desk: Desk,
        further: Mapping[str, Sequence[Reply | None]],
    ) -> Study:
        keys = [request.key for request in requests]
        models = [s.name for s in self.subjects if s.name in results.models]
        own = {model: [replies[model][k] for k in keys] for model in models}
        return Study(models, own, desk, self.baseline, self.base, self.seed, further, self.titles)

    def _measure(self, name: str, study: Study, results: Results) -> None:
        told = f"task {name}"
        if told in results.failures:
            return
        planning = study.desk.planning
        with _recorded(told, results, (lambda text: None) if planning else self.tell):
            outcome = self.tasks[name].measure(study)
            outcome.notes += _unanswered(study)
            if not planning:
                results.outcomes[name] = outcome
                self.tell(f"measured {name}")


def _unanswered(study: Study) -> list[str]:
    """A sentence for every model without a reply to some requests, such as a file without that exact prompt."""
    missing = {model: sum(reply is None for reply in own) for model, own in study.replies.items()}
    told = {model: counted(len(own), "request") for model, own in study.replies.items()}
    return [f"{model}: no reply to {n:,} of {told[model]}" for model, n in missing.items() if n]


@contextmanager
def _recorded(told: str, results: Results, tell: Tell) -> Iterator[None]:
    """Records an error of one model or task as a message, and lets the others continue."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if not isinstance(error, UserError):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            if os.environ.get("INSTRUCTLIT_DEBUG"):
                traceback.print_exception(error)
        results.failures[told] = text
        tell(f"{told} was left out: {text}")
