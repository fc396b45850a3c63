"""Protection between browser and routes: headers, the size of requests, cookies, CSRF tokens, sign-in limits."""

import hmac
import ipaddress
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructlit.labelling.people import digest
from instructlit.labelling.refusals import NotAllowed

SAFE_METHODS = ("GET", "HEAD")
UPLOAD_PATH = "/owner/import"
MAX_BODY, MAX_UPLOAD = 2 * 2**20, 64 * 2**20

_CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "font", "connect")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
}


class Guard:
    """Adds the security headers to every response, and rejects bodies that are too large while they arrive."""

    def __init__(self, app: ASGIApp, https: bool):
        self.app = app
        self.headers = _HEADERS | ({"strict-transport-security": "max-age=31536000"} if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_UPLOAD if scope["path"] == UPLOAD_PATH else MAX_BODY
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = not announced.isdecimal() or int(announced) > limit
        taken = 0

        async def receive_within() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if too_large or taken > limit:
                raise HTTPException(413, f"at most {limit // 2**20} MB")  # the application answers with its error page
            return message

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive_within, send_guarded)


@dataclass(frozen=True)
class Cookies:
    """The cookies of this site: one for a signed-in browser, one that only protects the sign-in form.

    Args:
        https: whether browsers reach the site by TLS; the cookies are then sent only over TLS.
    """

    https: bool

    @property
    def session(self) -> str:
        """Name of the cookie of a signed-in browser."""
        return "__Host-session" if self.https else "session"

    @property
    def visitor(self) -> str:
        """Name of the cookie of a browser that has not signed in yet."""
        return "__Host-visitor" if self.https else "visitor"

    def put(self, response: Response, name: str, value: str, seconds: int | None = None) -> None:
        """Set a cookie that scripts cannot read and other sites cannot send."""
        response.set_cookie(name, value, max_age=seconds, path="/", httponly=True, secure=self.https, samesite="strict")

    def drop(self, response: Response, name: str) -> None:
        """Delete a cookie."""
        response.delete_cookie(name, path="/", httponly=True, secure=self.https, samesite="strict")

    def secret(self, request: Request) -> str | None:
        """The secret that the browser's forms are bound to."""
        return request.cookies.get(self.session) or request.cookies.get(self.visitor)


def csrf_token(secret: str) -> str:
    """The token in a browser's forms: derived from its cookie, which no other site knows, without revealing it."""
    return digest(f"csrf {secret}")


async def check_csrf(request: Request) -> None:
    """Rejects a request that changes something unless it comes from one of our own pages.

    Raises:
        NotAllowed: if the origin differs, or the token in the form or the header X-CSRF-Token is missing or wrong.
    """
    if request.method in SAFE_METHODS:
        return
    fault = NotAllowed("this form has expired, or came from another site", fix="reload the page and try again")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise fault
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise fault
    secret = request.app.state.site.cookies.secret(request)
    given = request.headers.get("x-csrf-token")
    if given is None:
        given = (await request.form()).get("csrf")
    if secret is None or not isinstance(given, str):
        raise fault
    if not hmac.compare_digest(given.encode("utf-8", "replace"), csrf_token(secret).encode()):
        raise fault


@dataclass
class SignInLimit:
    """At most `failures` failed sign-ins from one address in `seconds`; a 64-bit IPv6 network counts as one address."""

    failures: int = 10
    seconds: float = 300.0
    remembered: int = 10_000
    _failed: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0 for now."""
        with self._lock:
            failed = self._recent(_network(address))
            return max(0.0, failed[0] + self.seconds - time.monotonic()) if len(failed) >= self.failures else 0.0

    def fail(self, address: str) -> None:
        """Record a failure."""
        with self._lock:
            key = _network(address)
            failed = self._recent(key)
            failed.append(time.monotonic())
            self._failed[key] = failed
            self._failed.move_to_end(key)
            while len(self._failed) > self.remembered:
                self._failed.popitem(last=False)

    def _recent(self, key: str) -> deque[float]:
        failed = self._failed.get(key, deque(maxlen=self.failures))
        while failed and failed[0] + self.seconds <= time.monotonic():
            failed.popleft()
        return failed


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:  # how a server on `::` sees IPv4: all of it would be one network
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
