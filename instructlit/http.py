"""Asking a service over HTTP, in JSON, with a key that goes to no other address and into no message."""

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
    """The service could not be reached, or did not send a usable answer.

    Attributes:
        status: of what it sent; 0 where that was nothing, or no error.
        told: its own words, or what failed.
        wish: the seconds it asks to wait, at most two minutes; None if it does not.
    """

    def __init__(self, status: int, told: str, wish: float | None = None):
        super().__init__(f"status {status}: {told}" if status else told)
        self.status, self.told, self.wish = status, told, wish


def secret_key(variable: str, where: str) -> str:
    """The key in an environment variable, "" where there is none.

    Args:
        variable: its name.
        where: the option that names it, for messages.

    Raises:
        UserError: it is none that a header can hold; http.client would say so with the key in its message.
    """
    key = os.environ.get(variable, "").strip()
    if re.fullmatch("[!-~]*", key) is None:
        raise UserError(
            f"the value of {variable} is not a key: it has a line break, a space or a non-ASCII character",
            where=where,
            expected="the name of an environment variable with one key in it",
            fix=f"export {variable}=…",
        )
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is not an answer: urllib would send the headers, and the key among them, to wherever it leads."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        told = f"it redirects to {newurl}, which is not followed: a key is sent to no other address"
        raise NoAnswer(code, told)


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def ask(url: str, body: Any, headers: Mapping[str, str], timeout: float) -> bytes:
    """What a service answers to one request. Redirects are not followed.

    Args:
        url: the service.
        body: plain values, posted as JSON; None gets what is there.
        headers: where a key stands; the type of the content is added.
        timeout: seconds to wait.

    Raises:
        NoAnswer: no connection, no answer in time, half an answer, a redirect, an error of the service.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with _opener().open(request, timeout=timeout) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise NoAnswer(error.code, _told(error, headers), _wish(error.headers.get("Retry-After"))) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(0, f"{type(error).__name__}: {error}") from error


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
    """What `read` finds in the answer to a request, which is tried again, with growing pauses, if it failed
    temporarily: no connection, no answer in time, half an answer, an answer that `read` cannot use, too many requests
    (after the time the service asks for in Retry-After), and errors of the server.

    Args:
        url: the service.
        body: the request, as plain values.
        headers: as in `ask`.
        read: raises ValueError, KeyError, IndexError or TypeError for an unusable answer.
        timeout: seconds to wait for one answer.
        retries: further tries.
        wait: waits the given seconds; True ends the retries.

    Raises:
        NoAnswer: if the last try fails.
    """
    fault = NoAnswer(0, "it was not asked")
    for attempt in range(retries + 1):
        pause = min(2.0**attempt, 60.0)
        said = b""
        try:
            said = ask(url, body, headers, timeout)
            return read(json.loads(said))
        except NoAnswer as error:
            fault = error
            if fault.status and fault.status not in _AGAIN:
                break
            pause = pause if fault.wish is None else fault.wish
        except (ValueError, KeyError, IndexError, TypeError) as error:
            fault = NoAnswer(0, f"{type(error).__name__}: {error}{f' in: {_words(said, headers)}' if said else ''}")
        if attempt < retries and wait(pause):
            break
    raise fault


def _words(said: bytes, headers: Mapping[str, str]) -> str:
    """What a service said, in one line, without the key that it may repeat."""
    words = said[:_TOLD].decode("utf-8", "replace").replace("\n", " ").strip()
    for value in headers.values():
        words = words.replace(value.removeprefix("Bearer "), "(removed)")
    return words


def _told(error: urllib.error.HTTPError, headers: Mapping[str, str]) -> str:
    """A service's own words about its error, which may stall or break off as any answer may."""
    try:
        return _words(error.read(_TOLD), headers)
    except (OSError, http.client.HTTPException) as broken:
        return f"(its reply could not be read: {type(broken).__name__})"


def _wish(header: str | None) -> float | None:
    """The seconds a server asks to wait, at most two minutes; None where it does not, or names a date."""
    try:
        return min(max(float(header or ""), 0.0), 120.0)
    except ValueError:
        return None
