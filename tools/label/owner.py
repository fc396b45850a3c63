"""The owner's pages about people and the project: dashboard, people and their tokens, instructions, the audit log."""

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from instructlit.labelling import audit, overview, people
from instructlit.labelling.instructions import set_instructions
from instructlit.labelling.measures import Measures, measure
from instructlit.labelling.records import label_records
from instructlit.labelling.refusals import NotFound
from instructlit.labelling.schema import Person
from instructlit.tools.label.site import FormDep, OwnerDep, PageFrom, SiteDep, field_of, to

router = APIRouter(prefix="/owner")
DAYS = 30
DISPUTES = 10
REMEASURE_SECONDS = 10.0
REMEASURE_SHARE = 20
"""The dashboard's figures are at least so many seconds old, and so many times what they take, before they are computed
again."""


@router.get("")
def dashboard(request: Request, site: SiteDep, person: OwnerDep) -> Response:
    """Throughput, agreement, biases, disputes, reports."""
    with site.database.read() as session:
        found = _measures(request, session)
        values: dict[str, Any] = {
            "found": found,
            "counts": overview.task_counts(session),
            "assignments": overview.assignment_counts(session),
            "flags": overview.open_flags(session),
            "skips": overview.skip_reasons(session),
            "days": _days(found),
            "disputes": found.disputes[:DISPUTES],
        }
        return site.page(request, "dashboard.html", **values)


@router.get("/people")
def show_people(request: Request, site: SiteDep, person: OwnerDep) -> Response:
    """Who may sign in."""
    with site.database.read() as session:
        return site.page(request, "people.html", everybody=people.everybody(session), token=None, token_for=None)


@router.post("/people")
def add_person(request: Request, site: SiteDep, person: OwnerDep, form: FormDep) -> Response:
    """Add a person; the next page shows the token, once."""
    name = field_of(form, "name").strip()
    with site.database.write() as session:
        token = people.add_person(session, person.name, name, field_of(form, "role"))
    return _show_token(request, site, name, token)


@router.post("/people/{person_id}/token")
def new_token(request: Request, site: SiteDep, person: OwnerDep, person_id: int) -> Response:
    """Create another token for a person."""
    with site.database.write() as session:
        somebody = _person(session, person_id)
        token = people.new_token(session, person.name, somebody)
    return _show_token(request, site, somebody.name, token)


@router.post("/people/{person_id}/revoke")
def revoke(site: SiteDep, person: OwnerDep, person_id: int) -> Response:
    """Revoke all tokens and logins of a person."""
    with site.database.write() as session:
        people.revoke(session, person.name, _person(session, person_id))
    return to("/owner/people")


@router.get("/instructions/{kind}")
def show_instructions(request: Request, site: SiteDep, person: OwnerDep, kind: str) -> Response:
    """The form to edit the instructions."""
    guide = site.guide(kind)
    return site.page(request, "instructions.html", kind=kind, text=guide.text, version=guide.id, saved=False)


@router.post("/instructions/{kind}")
def write_instructions(request: Request, site: SiteDep, person: OwnerDep, form: FormDep, kind: str) -> Response:
    """Save a new version of the instructions; "preview" shows it without saving."""
    text = field_of(form, "text").replace("\r\n", "\n")
    keep = field_of(form, "go") == "save"
    if keep:
        with site.database.write() as session:
            set_instructions(session, person.name, kind, text)
    return site.page(request, "instructions.html", kind=kind, text=text, version=site.guide(kind).id, saved=keep)


@router.get("/audit")
def show_audit(request: Request, site: SiteDep, person: OwnerDep, before: PageFrom = 0, subject: str = "") -> Response:
    """The audit log, newest first."""
    with site.database.read() as session:
        rows = audit.events(session, before or None, subject=subject or None)
    return site.page(request, "audit.html", rows=rows, subject=subject)


def _show_token(request: Request, site: SiteDep, name: str, token: str) -> Response:
    with site.database.read() as session:
        return site.page(request, "people.html", everybody=people.everybody(session), token=token, token_for=name)


def _person(session: Session, person_id: int) -> Person:
    found = session.get(Person, person_id) if 0 < person_id < 2**31 else None
    if found is None:
        raise NotFound("there is nobody with that id")
    return found


def _measures(request: Request, session: Session) -> Measures:
    """The result of `measure`, cached: it reads every label, so the longer it takes, the less often it runs."""
    state, began = request.app.state, time.monotonic()
    newest = overview.newest_event(session)
    kept = getattr(state, "measures", None)
    if kept is None or (kept[0] != newest and began >= kept[1]):
        found = measure(label_records(session, gold=True))
        taken = time.monotonic() - began
        kept = state.measures = (newest, began + max(REMEASURE_SECONDS, REMEASURE_SHARE * taken), found)
    return kept[2]


def _days(found: Measures) -> list[tuple[str, int]]:
    """Labels handed in on each of the last days, oldest first."""
    today = int(time.time() // (24 * 3600))
    days = range(today - DAYS + 1, today + 1)
    return [(time.strftime("%d %b", time.gmtime(day * 24 * 3600)), found.days.get(day, 0)) for day in days]
