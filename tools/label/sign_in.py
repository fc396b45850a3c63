"""Signing in with a token, signing out, light or dark."""

import math

from fastapi import APIRouter, Request
from fastapi.responses import Response

from instructlit.labelling import people
from instructlit.tools.label.site import THEMES, FormDep, PersonDep, SiteDep, field_of, to

router = APIRouter()


@router.get("/sign-in")
def show(request: Request, site: SiteDep) -> Response:
    """The form; the browser gets a cookie that binds the form to it."""
    if site.cookies.secret(request):
        return site.page(request, "sign_in.html", problem=None)
    secret = people.new_secret()
    request.cookies[site.cookies.visitor] = secret
    response = site.page(request, "sign_in.html", problem=None)
    site.cookies.put(response, site.cookies.visitor, secret)
    return response


@router.post("/sign-in")
def sign_in(request: Request, site: SiteDep, form: FormDep) -> Response:
    """Check a token; a browser that signs in gets a new secret."""
    address = request.client.host if request.client else "nowhere"
    if wait := site.limit.wait(address):
        problem = f"Too many failed attempts. Try again in {math.ceil(wait / 60)} min."
        response = site.page(request, "sign_in.html", 429, problem=problem)
        response.headers["retry-after"] = str(math.ceil(wait))
        return response
    with site.database.write() as session:
        found = people.sign_in(session, field_of(form, "token").strip())
    if found is None:
        site.limit.fail(address)
        return site.page(request, "sign_in.html", 401, problem="This token is not valid. Ask the owner for a new one.")
    person, secret = found
    response = to("/owner" if person.role == "owner" else "/")
    site.cookies.put(response, site.cookies.session, secret, people.LOGIN_SECONDS)
    site.cookies.drop(response, site.cookies.visitor)
    return response


@router.post("/sign-out")
def sign_out(request: Request, site: SiteDep, person: PersonDep) -> Response:
    """End this browser's login."""
    with site.database.write() as session:
        people.sign_out(session, person.name, request.cookies[site.cookies.session])
    response = to("/sign-in")
    site.cookies.drop(response, site.cookies.session)
    return response


@router.post("/theme")
def theme(request: Request, form: FormDep) -> Response:
    """Switch this browser to the next of auto, light and dark."""
    chosen = field_of(form, "theme")
    back = field_of(form, "back", "/")
    response = to(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/")
    if chosen in THEMES:
        response.set_cookie("theme", chosen, max_age=365 * 24 * 3600, path="/", httponly=True, samesite="strict")
    return response
