"""The labels that a round waits for: in a file provided by people, or in the labelling database."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instructlit.data.rows import file_hash
from instructlit.data.splits import is_held_out
from instructlit.errors import UserError, counted
from instructlit.labels import Label, read_labels, read_tasks, write_labels
from instructlit.labels.records import for_database, parse_label, with_policies
from instructlit.tools.made_from import read_made, write_made

if TYPE_CHECKING:
    from instructlit.labelling.database import Database

POLL_SECONDS = 30.0


@dataclass(frozen=True)
class Standing:
    """Progress of the labelling of some tasks."""

    done: int
    of: int
    told: str  # where labels are expected, and what they wait for


def check_sides(tasks: Path, fraction: float) -> None:
    """Checks, before people rank a round's answers, that the reward model can be trained and measured on them.

    Raises:
        UserError: if all prompts of the comparisons are held out, or none.
    """
    out = [is_held_out(task.prompt, fraction) for task in read_tasks(tasks) if task.kind == "comparison"]
    if len(set(out)) == 1:
        raise UserError(
            f"{'all' if out[0] else 'none'} of the {len(out)} prompts are held out by validation_fraction {fraction}",
            where=str(tasks),
            expected="prompts to train the reward model on, and prompts to measure it on",
            fix="use more prompts in this round, as in `limit: [100, 200]`, or change validation_fraction",
        )


def labelled(tasks: Path, labels: Path, labelers: int, database: str | None, wait: bool) -> bool:
    """Whether every task has its labels, and they are in the file; reports what is missing.

    Args:
        tasks: the file of tasks.
        labels: the file of labels; without a database people provide it; with one it is written once, as soon as the
            labels are complete.
        labelers: labels that a task needs.
        database: labelling database.
        wait: keep checking every half minute until they are complete.
    """
    desk = _Database(database, tasks, labels, labelers) if database else _File(tasks, labels, labelers)
    said = None
    while True:
        standing = desk.look()
        if standing.done == standing.of:
            return True
        if standing != said:
            print(f"{standing.done} of {standing.of} tasks have {labelers} labels{standing.told}", flush=True)
            said = standing
        if not wait:
            print("Run the same command again when the labels are complete.")
            return False
        time.sleep(POLL_SECONDS)


class _File:
    """A file that people put next to the tasks."""

    def __init__(self, tasks: Path, labels: Path, labelers: int):
        self.tasks, self.labels, self.labelers = tasks, labels, labelers

    def look(self) -> Standing:
        """The current content of the file."""
        known = read_tasks(self.tasks)
        there = self.labels.is_file() and self.labels.stat().st_size
        labels = with_policies(read_labels(self.labels), known) if there else []
        given = Counter(task for task, _ in {(label.task, label.labeler) for label in labels})
        done = sum(given[task.task] >= self.labelers for task in known)
        return Standing(done, len(known), f": {self.labels} for the tasks of {self.tasks}")


class _Database:
    """A labelling database to which the tasks are added. Complete labels are exported once and written to the file."""

    def __init__(self, name: str, tasks: Path, labels: Path, labelers: int):
        from instructlit.labelling.audit import COMMAND_LINE
        from instructlit.labelling.tasks import add_tasks, taken_in, want_labels

        self.name, self.labels, self.labelers = name, labels, labelers
        self.known = read_tasks(tasks)
        self.made_from = {"tasks_sha256": file_hash(str(tasks)), "labelers": labelers}
        self.records = [for_database(task) for task in self.known]
        if self._taken():
            return
        with self._opened() as database, database.write() as session:
            added = add_tasks(session, COMMAND_LINE, self.records, overlap=labelers, source=str(tasks))
            want_labels(session, COMMAND_LINE, taken_in(session, self.records), labelers)
        print(f"{database}: {counted(added.new, 'new task')}, {added.known} already there")

    def look(self) -> Standing:
        """The current state of the database; writes the file when the labels are complete."""
        from instructlit.labelling.records import label_records, label_row
        from instructlit.labelling.tasks import taken_in

        if self._taken():
            return Standing(len(self.known), len(self.known), "")
        with self._opened(create=False) as database, database.read() as session:
            asked = {task.id: task.state for task in taken_in(session, self.records)}
            kinds, rounds = {task.kind for task in self.known}, {task.round for task in self.known}
            of_rounds = None if None in rounds else [number for number in rounds if number is not None]
            records = [one for one in label_records(session, kinds, of_rounds, gold=True) if one["task"] in asked]
        given = Counter(record["task"] for record in records)
        done = [state == "withdrawn" or given[task] >= self.labelers for task, state in asked.items()]
        if all(done):
            self._take([parse_label(label_row(record), str(database)) for record in records], str(database))
        held = sum(state == "held" for state in asked.values())
        waiting = f"; {held} are reported and wait for the owner" if held else ""
        return Standing(sum(done), len(done), f"{waiting}: `instructlit label --database {database}` serves them")

    @contextmanager
    def _opened(self, create: bool = True) -> Iterator["Database"]:
        """The database, opened only while it is checked: people may take days."""
        from instructlit.labelling.database import Database

        database = Database(self.name, create)
        try:
            yield database
        finally:
            database.close()

    def _taken(self) -> bool:
        """Whether the file contains the labels of exactly these tasks."""
        return self.labels.is_file() and read_made(self.labels) == self.made_from

    def _take(self, labels: list[Label], database: str) -> None:
        if not labels:
            raise UserError("every task was withdrawn", where=database, expected="labels")
        write_labels(self.labels, with_policies(labels, self.known))
        write_made(self.labels, self.made_from)
        print(f"{self.labels}: {counted(len(labels), 'label')} from {database}")
