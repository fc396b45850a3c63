"""What every route uses: the database, the signed-in person, and pages from templates."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import FormData

from instructlit.errors import counted
from instructlit.labelling import people
from instructlit.labelling.answers import letter
from instructlit.labelling.audit import COMMAND_LINE
from instructlit.labelling.database import Database
from instructlit.labelling.instructions import begin_with, instructions
from instructlit.labelling.questions import FLAG_KINDS, KIND_TITLES, KINDS, QUESTIONS, SKIP_REASONS
from instructlit.labelling.refusals import NotAllowed
from instructlit.labelling.schema import Instruction, Person
from instructlit.tools.label.markdown import excerpt, prompt_text, render, render_guide
from instructlit.tools.label.security import Cookies, SignInLimit, csrf_token

FOLDER = Path(str(resources.files("instructlit.tools.label")))
THEMES = ("auto", "light", "dark")


class SignInNeeded(Exception):
    """Nobody is signed in; the response is the sign-in page."""


@dataclass
class Site:
    """One running labelling site.

    Args:
        database: the labelling database.
        title: heading of the pages.
        lease_seconds: how long a task stays reserved without a save.
        cookies: the names and kinds of its cookies.
        limit: how often sign-in may fail.
    """

    database: Database
    title: str
    lease_seconds: float
    cookies: Cookies
    limit: SignInLimit = field(default_factory=SignInLimit)

    def __post_init__(self) -> None:
        ours = {kind: (FOLDER / "instructions" / f"{kind}.md").read_text("utf-8") for kind in KINDS}
        with self.database.write() as session:
            begin_with(session, COMMAND_LINE, ours)
        self.templates = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.globals |= {
            "site_title": self.title,
            "kinds": KINDS,
            "kind_titles": KIND_TITLES,
            "questions": QUESTIONS,
            "skip_reasons": SKIP_REASONS,
            "flag_kinds": FLAG_KINDS,
            "letter": letter,
        }
        self.templates.filters |= {
            "markdown": render,
            "guide": render_guide,
            "excerpt": excerpt,
            "prompt_text": prompt_text,
            "when": when,
            "counted": counted,
            "duration": duration,
        }

    def guide(self, kind: str) -> Instruction:
        """The instructions of a kind of task."""
        with self.database.read() as session:
            found = instructions(session, kind)
        assert found is not None, "every kind has had a first version since the site was made"
        return found

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A template as a response."""
        secret = self.cookies.secret(request)
        theme = request.cookies.get("theme", "auto")
        values.setdefault("person", getattr(request.state, "person", None))
        text = self.templates.get_template(name).render(
            csrf=csrf_token(secret) if secret else "",
            theme=theme if theme in THEMES else "auto",
            path=request.url.path,
            **values,
        )
        return HTMLResponse(text, status_code=status)


def site_of(request: Request) -> Site:
    """The site that serves a request."""
    return request.app.state.site


def person_of(request: Request) -> Person:
    """The person who is signed in.

    Raises:
        SignInNeeded: if nobody is signed in.
    """
    site = site_of(request)
    cookie = request.cookies.get(site.cookies.session)
    with site.database.read() as session:
        person = people.signed_in(session, cookie) if cookie else None
    if person is None:
        raise SignInNeeded
    request.state.person = person
    return person


def owner_of(person: Annotated[Person, Depends(person_of)]) -> Person:
    """The person who is signed in, if it is an owner.

    Raises:
        NotAllowed: if it is not.
    """
    if person.role != "owner":
        raise NotAllowed("this page is only for owners of the project")
    return person


async def form_of(request: Request) -> FormData:
    """The submitted form; it has passed the CSRF check."""
    return await request.form()


def field_of(form: FormData, name: str, default: str = "") -> str:
    """A text field of a form; a file in its place is ignored."""
    value = form.get(name, default)
    return value if isinstance(value, str) else default


def to(path: str) -> Response:
    """Redirect to another page of this site."""
    return RedirectResponse(path, status_code=303)


def when(seconds: float | None) -> str:
    """A time in readable form."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "\u2013"


def duration(seconds: float | None) -> str:
    """A duration in readable form."""
    if seconds is None:
        return "\u2013"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


SiteDep = Annotated[Site, Depends(site_of)]
PersonDep = Annotated[Person, Depends(person_of)]
OwnerDep = Annotated[Person, Depends(owner_of)]
FormDep = Annotated[FormData, Depends(form_of)]
PageFrom = Annotated[int, Query(ge=0, lt=2**31)]
"""The id that a page of a list continues from, within the range of both databases."""
