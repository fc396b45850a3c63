"""The owner's pages about tasks: lists, one task with all its labels, decisions, files in and out."""

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import UploadFile

from instructlit.agreement import pair_agreement
from instructlit.labelling import overview, tasks
from instructlit.labelling.assign import find_assignment_of_task
from instructlit.labelling.questions import KINDS
from instructlit.labelling.records import record_of
from instructlit.labelling.refusals import Invalid, NotFound
from instructlit.tools.label.drafts import number
from instructlit.tools.label.rows import exported, parsed_lines, task_record
from instructlit.tools.label.site import FormDep, OwnerDep, PageFrom, SiteDep, field_of, to

router = APIRouter(prefix="/owner")
STATES = ("open", "full", "gold", "held", "withdrawn")


@router.get("/tasks")
def show_tasks(
    request: Request, site: SiteDep, person: OwnerDep, kind: str = "", state: str = "", after: PageFrom = 0
) -> Response:
    """A page of tasks."""
    with site.database.read() as session:
        rows = overview.tasks(session, kind or None, state or None, after)
    more = len(rows) == overview.PAGE
    return site.page(request, "tasks.html", rows=rows, kind=kind, state=state, states=STATES, more=more)


@router.get("/tasks/{task_id}")
def show_task(request: Request, site: SiteDep, person: OwnerDep, task_id: int) -> Response:
    """One task: the prompt, the policies, the labels."""
    with site.database.read() as session:
        task = tasks.find_task(session, task_id)
        found = overview.assignments(session, task)
    records = [record_of(a, task, name) for a, name in found if a.state == "done"]
    others = [(a, name) for a, name in found if a.state != "done"]
    gold = {r["labeler"]: pair_agreement(r["ranks"], task.gold) for r in records} if task.gold else {}
    return site.page(request, "task.html", task=task, records=records, others=others, gold=gold)


@router.post("/tasks/{task_id}/gold")
def set_gold(site: SiteDep, person: OwnerDep, form: FormDep, task_id: int) -> Response:
    """Use one labeler's ranks as the gold ranks, or remove them."""
    with site.database.write() as session:
        task = tasks.find_task(session, task_id)
        labeler = field_of(form, "labeler")
        ranks = None
        if labeler:
            assignment = find_assignment_of_task(session, task, labeler)
            ranks = record_of(assignment, task, labeler).get("ranks")
        tasks.set_gold(session, person.name, task, ranks)
    return to(f"/owner/tasks/{task_id}")


@router.post("/tasks/{task_id}/decide")
def decide(site: SiteDep, person: OwnerDep, form: FormDep, task_id: int) -> Response:
    """Release a reported prompt to the labelers, or withdraw it."""
    with site.database.write() as session:
        tasks.decide(session, person.name, tasks.find_task(session, task_id), field_of(form, "decision"))
    return to(f"/owner/tasks/{task_id}")


@router.get("/import")
def show_import(request: Request, site: SiteDep, person: OwnerDep) -> Response:
    """The form to upload tasks."""
    return site.page(request, "import.html", added=None, file=None)


@router.post("/import")
def import_tasks(request: Request, site: SiteDep, person: OwnerDep, form: FormDep) -> Response:
    """Import tasks from an uploaded file: all of them, or none if one is invalid."""
    upload, kind = form.get("file"), field_of(form, "kind")
    if not isinstance(upload, UploadFile) or not upload.filename:
        raise Invalid("no file was chosen", expected="a file of JSON Lines")
    overlap, round_ = number(form, "overlap", 1), number(form, "round", None)
    gold = bool(field_of(form, "gold"))
    name = upload.filename[:200]
    records = (task_record(row, where, kind, gold, round_) for where, row in parsed_lines(upload.file, name))
    rows = tasks.task_rows(records, overlap=overlap, source=name)
    with site.database.write() as session:
        added = tasks.add_rows(session, person.name, rows, name)
    return site.page(request, "import.html", added=added, file=upload.filename)


@router.get("/export/{name}")
def export(site: SiteDep, person: OwnerDep, name: str, gold: bool = False) -> Response:
    """The labels of a kind as a file."""
    kind = name.removesuffix(".jsonl")
    if name != f"{kind}.jsonl" or kind not in KINDS:
        raise NotFound("there is no such file")

    def lines():
        with site.database.read() as session:
            yield from exported(session, kind, gold)

    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)
