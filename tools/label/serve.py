"""`instructlit label`: the server."""

import ipaddress
import socket
import ssl

import uvicorn

from instructlit.errors import UserError
from instructlit.labelling import people
from instructlit.labelling.database import Database
from instructlit.tools.label.app import create_app
from instructlit.tools.label.security import Cookies
from instructlit.tools.label.site import Site

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


def label(
    *,
    database: str = "labels.db",
    host: str = "127.0.0.1",
    port: int = 8080,
    title: str = "Labelling",
    lease_minutes: float = 60,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    behind_proxy: bool = False,
    plain_http: bool = False,
    hostnames: list[str] | None = None,
) -> None:
    """Serve the web application in which people write demonstrations, rate and rank answers, and evaluate models.

    Create the first owner with `instructlit label add-labeler NAME --role owner`. By default the server listens on this
    machine only; serving others requires TLS.

    Args:
        database: file, or URL of a PostgreSQL server; migrated to the newest schema, with a copy of an older file kept.
        host: address to listen on.
        port: port to listen on.
        title: heading of the pages.
        lease_minutes: how long a task stays reserved for a labeler without a save.
        tls_certificate: file of the certificate chain, PEM.
        tls_key: file of its key, PEM, without a password.
        behind_proxy: a proxy on this machine terminates TLS and forwards the browser's Host, against which forms are
            checked, X-Forwarded-For and X-Forwarded-Proto.
        plain_http: serve other machines without TLS: tokens and prompts are then sent unencrypted.
        hostnames: host names under which browsers may reach it; other Host headers are refused. By default, on
            loopback, the loopback names.
    """
    _check(host, port, lease_minutes, tls_certificate, tls_key, plain_http)
    opened = Database(database, create=False)
    with opened.read() as session:
        if not people.has_owner(session):
            fix = f"instructlit label add-labeler NAME --role owner --database {opened}"
            raise UserError("no owner can sign in yet", where=str(opened), fix=fix)
    if opened.backup:
        print(f"The schema of {opened} was upgraded; a copy of the old file: {opened.backup}", flush=True)
    https = behind_proxy or tls_certificate is not None
    site = Site(opened, title, lease_minutes * 60, Cookies(https))
    shown = f"[{host}]" if ":" in host else host
    allowed = hostnames or ([shown, *LOOPBACK_NAMES] if _is_loopback(host) and not behind_proxy else None)
    config = uvicorn.Config(
        create_app(site, allowed),
        ssl_certfile=tls_certificate,
        ssl_keyfile=tls_key,
        proxy_headers=behind_proxy,
        forwarded_allow_ips="127.0.0.1,::1",
        server_header=False,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,  # people think between requests
        timeout_graceful_shutdown=10,
    )
    _load_tls(config)
    listener = _listen(host, port)
    scheme = "https" if tls_certificate else "http"
    print(f"Labelling {opened} at {scheme}://{shown}:{listener.getsockname()[1]}  (Ctrl-C to stop)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    opened.close()


def _check(
    host: str, port: int, lease_minutes: float, certificate: str | None, key: str | None, plain_http: bool
) -> None:
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is not a port", where="--port", expected="0 (any free one) to 65535")
    if not 1 <= lease_minutes <= 7 * 24 * 60:
        raise UserError(f"found {lease_minutes:g}", where="--lease_minutes", expected="1 to 10080 (a week)")
    if (certificate is None) != (key is None):
        raise UserError("one of --tls_certificate and --tls_key is missing", expected="both, or neither")
    if not _is_loopback(host) and certificate is None and not plain_http:
        raise UserError(
            f"{host} can be reached from other machines, but TLS is not set up",
            where="--host",
            expected="--tls_certificate and --tls_key, or a TLS proxy in front of 127.0.0.1 (--behind_proxy)",
            fix="use --plain_http if you trust the network in between",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _load_tls(config: uvicorn.Config) -> None:
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the certificate or its key cannot be used: {reason}", where="--tls_certificate") from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small packets at once only if the protocol is given: without it a page waits 40 ms for an ACK
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)  # connections are accepted from now on
    except OSError as error:
        what = f"{host}:{port} cannot listen on this address: {error.strerror}"
        raise UserError(what, where="--port", fix="choose another --port, or --port 0 for any free one") from error
    return listener
