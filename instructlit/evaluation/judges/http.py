"""Asking a web service for JSON: what fails for a moment is tried again, with growing pauses."""

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from instructlit.errors import UserError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_TOLD = 2000  # characters of a service's own words that are looked at


class NoAnswer(Exception):
    """The service could not be reached or did not answer in the end.

    Attributes:
        status: of its last answer; 0 where there was none.
        told: its own words.
    """

    def __init__(self, status: int, told: str):
        super().__init__(f"status {status}: {told}" if status else told)
        self.status, self.told = status, told


def secret_key(variable: str) -> str:
    """The key in an environment variable, "" where there is none.

    Raises:
        UserError: it is none that a header can hold; http.client would say so with the key in its message.
    """
    key = os.environ.get(variable, "").strip()
    if re.fullmatch("[!-~]*", key) is None:
        raise UserError(
            f"what {variable} holds is no key: a line break, a space or a letter that is not ASCII is in it",
            where="judge.api_key_env",
            expected="the name of an environment variable with one key in it",
            fix=f"export {variable}=…",
        )
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is no answer: urllib would send the headers, and the key among them, to wherever it leads."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        told = f"it redirects to {newurl}, which is not followed: a key is sent to no other address"
        raise NoAnswer(code, told)


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def post(
    url: str,
    body: Any,
    headers: Mapping[str, str],
    read: Callable[[Any], Any],
    *,
    timeout: float,
    retries: int,
    wait: Callable[[float], object],
) -> Any:
    """What `read` finds in the answer to a request.

    Tried again: no connection, no answer in time, half an answer, an answer that `read` cannot use, too many requests
    (after the time the service asks for in Retry-After), and errors of the server.
    Redirects are not followed.

    Args:
        url: the service.
        body: the request, as plain values.
        headers: beside the type of the content; where a key stands.
        read: raises ValueError, KeyError, IndexError or TypeError for an answer that is none.
        timeout: seconds to wait for one answer.
        retries: further tries.
        wait: lets the given seconds pass; True ends the trying.

    Raises:
        NoAnswer: in the end.
    """
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), sent, method="POST")
    fault = NoAnswer(0, "it was not asked")
    for attempt in range(retries + 1):
        pause = min(2.0**attempt, 60.0)
        said = b""
        try:
            with _opener().open(request, timeout=timeout) as answer:
                said = answer.read()
            return read(json.loads(said))
        except urllib.error.HTTPError as error:
            fault = NoAnswer(error.code, _told(error))
            if error.code not in _AGAIN:
                break
            pause = _wish(error.headers.get("Retry-After"), pause)
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            fault = NoAnswer(0, f"{type(error).__name__}: {error}{f' in: {_words(said)}' if said else ''}")
        if attempt < retries and wait(pause):
            break
    raise fault


def _words(said: bytes) -> str:
    return said[:_TOLD].decode("utf-8", "replace").replace("\n", " ").strip()


def _told(error: urllib.error.HTTPError) -> str:
    """A service's own words about its error, which may stall or break off as any answer may."""
    try:
        return _words(error.read(_TOLD))
    except (OSError, http.client.HTTPException) as broken:
        return f"(what it said could not be read: {type(broken).__name__})"


def _wish(header: str | None, default: float) -> float:
    """The seconds a server asks to wait, at most two minutes."""
    try:
        return min(max(float(header or ""), 0.0), 120.0)
    except ValueError:
        return default
