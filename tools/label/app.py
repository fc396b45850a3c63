"""The application: middleware, routes and error handling."""

import sys

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from instructlit.errors import UserError, first_line
from instructlit.labelling.database import is_busy
from instructlit.labelling.refusals import Invalid, NotAllowed, NotFound, Stale
from instructlit.tools.label import labeling, owner, owner_tasks, sign_in
from instructlit.tools.label.security import Guard, check_csrf
from instructlit.tools.label.site import FOLDER, SignInNeeded, Site, to

_FAULT = ("Something went wrong on the server, and it has been logged.", "try again in a moment")
_STATUS = {NotFound: 404, NotAllowed: 403, Stale: 409, Invalid: 422}
_TITLES = {
    403: "Not allowed",
    404: "Not found",
    405: "Not found",
    409: "Changed elsewhere",
    503: "Temporarily unavailable",
    500: "Server error",
}


def create_app(site: Site, hosts: list[str] | None = None) -> ASGIApp:
    """The application of one site.

    Args:
        site: the site.
        hosts: host names that browsers may use for it; any if not given.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, dependencies=[Depends(check_csrf)])
    app.state.site = site
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    for module in (sign_in, labeling, owner, owner_tasks):
        app.include_router(module.router)
    app.add_exception_handler(SignInNeeded, lambda request, error: _sign_in_needed(request))
    app.add_exception_handler(UserError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(
        RequestValidationError, lambda request, error: _say(request, 404, "There is no such page.")
    )
    app.add_exception_handler(OperationalError, _database_error)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=400))  # nobody reads it
    app.add_exception_handler(Exception, lambda request, error: _say(request, 500, *_FAULT))
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return Guard(app, https=site.cookies.https)  # around everything: error pages are guarded too


def _wants_json(request: Request) -> bool:
    """Whether the request comes from a script, not a person."""
    return "application/json" in request.headers.get("accept", "")


def _say(request: Request, status: int, what: str, fix: str | None = None) -> Response:
    if _wants_json(request):
        return JSONResponse({"error": what, "fix": fix}, status_code=status)
    title = _TITLES.get(status, "That did not work")
    return request.app.state.site.page(request, "error.html", status, title=title, what=what, fix=fix)


def _sign_in_needed(request: Request) -> Response:
    if _wants_json(request):
        return JSONResponse({"error": "You are no longer signed in.", "fix": "Sign in in another tab."}, 401)
    return to("/sign-in")


def _refused(request: Request, error: UserError) -> Response:
    parts = (error.where, error.what, error.expected and f"expected {error.expected}")
    what = ": ".join(part for part in parts if part)
    what = what if error.where else f"{what[:1].upper()}{what[1:]}"  # the name of a file stays unchanged
    return _say(request, _STATUS.get(type(error), 400), what, error.fix)


def _http_error(request: Request, error: HTTPException) -> Response:
    told = {404: "There is no such page.", 413: f"That is too large: {error.detail}."}
    what = told.get(error.status_code, "That cannot be done.")
    return _say(request, error.status_code, what)


def _database_error(request: Request, error: OperationalError) -> Response:
    """The database is busy, its disk is full, or its server is down: the next attempt may succeed."""
    if is_busy(error):
        return _say(request, 503, "The database is busy.", "try again in a moment; nothing is lost")
    reason = first_line(error.orig or error)
    print(f"{request.app.state.site.database}: {reason}", file=sys.stderr, flush=True)
    what = "The database is not available now; nothing was changed."
    return _say(request, 503, what, "tell the owner, who can see why on the server, and try again later")
