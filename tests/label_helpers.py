"""People with their browsers, tasks and answers for the tests of the labelling tool."""

from typing import Any, Self

from starlette.testclient import TestClient

from instructlit.labelling import assign, people, records, tasks, work
from instructlit.labelling.database import Database
from instructlit.labelling.questions import QUESTIONS
from instructlit.labelling.schema import Assignment, Person
from instructlit.tools.label.security import csrf_token

LEASE = 600.0
NO = {question.name: False for question in QUESTIONS}
COMPARISON = {"kind": "comparison", "prompt": "Say a.", "completions": ["a", "bb", "ccc"], "policies": ["p", "q", "r"]}


class Browser(TestClient):
    """A browser of one person: signed in, and with the CSRF token that its pages carry."""

    def sign_in(self, token: str) -> Self:
        self.get("/sign-in")
        assert self.submit("/sign-in", token=token).status_code in (200, 303)
        return self

    @property
    def csrf(self) -> str:
        return csrf_token(self.cookies.get("session") or self.cookies["visitor"])

    def submit(self, path: str, **fields: Any) -> Any:
        return self.post(path, data={"csrf": self.csrf} | fields, follow_redirects=False)


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
