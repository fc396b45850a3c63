"""People, tasks and answers for the tests of the labelling tool."""

from typing import Any

from instructlit.labelling import assign, people, records, tasks, work
from instructlit.labelling.database import Database
from instructlit.labelling.questions import QUESTIONS
from instructlit.labelling.schema import Assignment, Person

LEASE = 600.0
NO = {question.name: False for question in QUESTIONS}
COMPARISON = {"kind": "comparison", "prompt": "Say a.", "completions": ["a", "bb", "ccc"], "policies": ["p", "q", "r"]}


def add_people(database: Database, *names: str, role: str = "labeler") -> list[Person]:
    """People by name, and one tokens each."""
    with database.write() as session:
        for name in names:
            people.add_person(session, "test", name, role)
        return [people.find_person(session, name) for name in names]


def add_tasks(database: Database, *records: dict[str, Any], overlap: int = 1) -> None:
    """Tasks from records."""
    with database.write() as session:
        tasks.add_tasks(session, "test", records, overlap=overlap)


def comparisons(count: int, **fields: Any) -> list[dict[str, Any]]:
    """So many comparisons of three outputs."""
    return [COMPARISON | {"prompt": f"Say a, {i}."} | fields for i in range(count)]


def take(database: Database, person: Person, kind: str = "comparison", lease: float = LEASE) -> Assignment | None:
    """The next assignment of somebody."""
    with database.write() as session:
        return assign.next_assignment(session, person, kind, lease)


def save(database: Database, person: Person, assignment: Assignment, version: int, answer: dict[str, Any], **more: Any):
    """Save a draft."""
    options: dict[str, Any] = {"seconds": 0.0, "lease_seconds": LEASE} | more
    with database.write() as session:
        return work.save(session, person, assignment.id, version, answer, **options)


def ranked(*ranks: int | None, ratings: list[int] | None = None) -> dict[str, Any]:
    """A whole comparison, lists in the order of the completions."""
    outputs = [{"rating": rating, "flags": NO} for rating in ratings or [4] * len(ranks)]
    return {"ranks": list(ranks), "outputs": outputs, "notes": ""}


def label(database: Database, person: Person, *ranks: int, ratings: list[int] | None = None) -> Assignment:
    """Take the next comparison, rank it and hand it in."""
    assignment = take(database, person)
    assert assignment is not None
    save(database, person, assignment, assignment.version, ranked(*ranks, ratings=ratings))
    with database.write() as session:
        return work.submit(session, person, assignment.id, assignment.version + 1)


def label_records(database: Database) -> list[dict[str, Any]]:
    """The records of all labels that count."""
    with database.read() as session:
        return list(records.label_records(session))
