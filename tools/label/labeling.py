"""The pages of a labeler: waiting tasks, the work itself, the history."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from instructlit.labelling import assign, progress, work
from instructlit.labelling.answers import missing, open_questions, shown
from instructlit.labelling.questions import KINDS
from instructlit.labelling.refusals import Invalid, NotFound
from instructlit.labelling.schema import Assignment, Person
from instructlit.tools.label.drafts import answer_from, number, seconds
from instructlit.tools.label.site import FormDep, PersonDep, Site, SiteDep, field_of, to

router = APIRouter()
RANK = "rank"


@router.get("/")
def home(request: Request, site: SiteDep, person: PersonDep) -> Response:
    """A person's waiting tasks and progress."""
    with site.database.read() as session:
        waiting = assign.waiting(session, person)
        mine = progress.of_person(session, person)
    return site.page(request, "home.html", waiting=waiting, mine=mine, none_left=request.query_params.get("none"))


@router.post("/next")
def next_task(site: SiteDep, person: PersonDep, form: FormDep) -> Response:
    """Continue with a kind of task."""
    return _next(site, person, field_of(form, "kind"))


@router.get("/history")
def history(request: Request, site: SiteDep, person: PersonDep) -> Response:
    """What a person handed in or skipped, newest first."""
    with site.database.read() as session:
        rows = progress.history(session, person)
        return site.page(request, "history.html", rows=rows)


@router.get("/work/{assignment_id}")
@router.get("/work/{assignment_id}/{page}")
def show(
    request: Request,
    site: SiteDep,
    person: PersonDep,
    assignment_id: int,
    page: str = "",
    done: int = 0,
    skipped: int = 0,
    open: bool = False,
) -> Response:
    """One page of the work: a text to write, an output to rate, or the board."""
    with site.database.read() as session:
        assignment = work.readable(assign.find_assignment(session, person, assignment_id))
        task, answer = assignment.task, shown(assignment.answer, assignment.order)
        pages = _pages(assignment)
        if not page and len(pages) > 1:
            return to(f"/work/{assignment_id}/{_first_open_page(answer)}{_query(request)}")
        if page not in pages:
            raise NotFound("there is no such page")
        head = work.head(session, assignment)
    outputs = [task.completions[i] for i in assignment.order]
    values: dict[str, Any] = {"assignment": assignment, "task": task, "answer": answer, "outputs": outputs}
    if assignment.state != "open":
        return site.page(request, "closed.html", **values)
    values |= {
        "page_name": page,
        "pages": pages,
        "problems": missing(task.kind, answer),
        "guide": site.guide(task.kind),
        "can_undo": head.parent is not None,
        "can_redo": head.redo is not None,
        "done": done or skipped,
        "was_skipped": bool(skipped),
        "not_handed_in": open,
        "seconds": assignment.seconds,
    }
    template = "write.html" if task.kind == "demonstration" else "rate.html" if page.isdecimal() else "board.html"
    return site.page(request, template, **values)


@router.post("/work/{assignment_id}/draft")
def draft(site: SiteDep, person: PersonDep, form: FormDep, assignment_id: int) -> Response:
    """Autosave: responds when the draft is on disk."""
    with site.database.write() as session:
        saved = _save(session, site, person, assignment_id, form)
        head = work.head(session, saved)
    return JSONResponse(
        {
            "version": saved.version,
            "undo": head.parent is not None,
            "redo": head.redo is not None,
            "problems": missing(saved.task.kind, shown(saved.answer, saved.order)),
        }
    )


@router.post("/work/{assignment_id}/page")
def turn(site: SiteDep, person: PersonDep, form: FormDep, assignment_id: int) -> Response:
    """Save a page by its button and go where the button says: to another page, or to the next task."""
    with site.database.write() as session:
        saved = _save(session, site, person, assignment_id, form)
        pages, kind = _pages(saved), saved.task.kind
    go = field_of(form, "go")
    if go != "submit":
        if go not in pages:
            raise Invalid("there is no such page", where="go")
        return to(f"/work/{assignment_id}/{go}")
    try:
        with site.database.write() as session:  # the draft is kept even if it is incomplete
            work.submit(session, person, assignment_id, saved.version)
    except Invalid:
        return to(f"/work/{assignment_id}?open=1")  # the page to continue on, with a line that says what is missing
    return _next(site, person, kind, f"?done={assignment_id}")


@router.post("/work/{assignment_id}/skip")
def skip(site: SiteDep, person: PersonDep, form: FormDep, assignment_id: int) -> Response:
    """Skip a task with a reason."""
    with site.database.write() as session:
        reason, note = field_of(form, "reason"), field_of(form, "note")
        kind = work.skip(session, person, assignment_id, reason, note).task.kind
    return _next(site, person, kind, f"?skipped={assignment_id}")


@router.post("/work/{assignment_id}/flag")
def flag(site: SiteDep, person: PersonDep, form: FormDep, assignment_id: int) -> Response:
    """Report a prompt as private or harmful."""
    with site.database.write() as session:
        reason, note = field_of(form, "reason"), field_of(form, "note")
        kind = work.flag(session, person, assignment_id, reason, note).task.kind
    return _next(site, person, kind)


@router.post("/work/{assignment_id}/reopen")
def reopen(site: SiteDep, person: PersonDep, assignment_id: int) -> Response:
    """Take back what was handed in."""
    with site.database.write() as session:
        work.reopen(session, person, assignment_id, site.lease_seconds)
    return to(f"/work/{assignment_id}")


@router.post("/work/{assignment_id}/{direction}")
def step(site: SiteDep, person: PersonDep, form: FormDep, assignment_id: int, direction: str) -> Response:
    """Undo or redo one change, and show it: it may belong to another page than that of the button."""
    if direction not in ("undo", "redo"):
        raise NotFound("there is no such page")
    with site.database.write() as session:
        before = assign.find_assignment(session, person, assignment_id).answer
        now = work.step(session, person, assignment_id, number(form, "version"), direction)
        page = _page_of_change(shown(before, now.order), shown(now.answer, now.order)) or field_of(form, "page")
    return to(f"/work/{assignment_id}" + (f"/{page}" if page == RANK or page.isdecimal() else ""))


def _save(session: Session, site: Site, person: Person, assignment_id: int, form: FormData) -> Assignment:
    assignment = assign.find_assignment(session, person, assignment_id)
    return work.save(
        session,
        person,
        assignment_id,
        number(form, "version"),
        answer_from(form, assignment),
        seconds=seconds(form),
        lease_seconds=site.lease_seconds,
        nonce=field_of(form, "nonce") or None,
        instructions=number(form, "instructions", None),
    )


def _next(site: Site, person: Person, kind: str, query: str = "") -> Response:
    if kind not in KINDS:
        raise Invalid("there is no such kind of task", where="kind")
    with site.database.write() as session:
        assignment = assign.next_assignment(session, person, kind, site.lease_seconds)
    return to(f"/?none={kind}" if assignment is None else f"/work/{assignment.id}{query}")


def _pages(assignment: Assignment) -> list[str]:
    """The pages of the work: one per output and then the board; other kinds have one page, without a name."""
    if assignment.task.kind != "comparison":
        return [""]
    return [*(str(place) for place in range(1, len(assignment.order) + 1)), RANK]


def _first_open_page(answer: dict[str, Any]) -> str:
    for place, output in enumerate(answer.get("outputs", ()), 1):
        if output["rating"] is None or open_questions(output):
            return str(place)
    return RANK


def _page_of_change(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The page of a comparison that shows what differs between two answers; "" if all do, or nothing differs."""
    if "outputs" not in after:
        return ""
    for place, (old, new) in enumerate(zip(before["outputs"], after["outputs"], strict=True), 1):
        if old != new:
            return str(place)
    return RANK if before["ranks"] != after["ranks"] else ""


def _query(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""
