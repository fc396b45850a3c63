"""Services that a judge asks, on this machine: each answers as the real one documents, and counts what it is asked."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[int, dict[str, Any]], Any]


class Service:
    """Answers every POST with what `reply(number of the call, body)` returns.

    That is a text, sent as a chat completion; a mapping, sent as JSON; (status, mapping or bytes, headers); or a
    number, the seconds for which nothing comes.
    """

    def __init__(self, reply: Reply):
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.calls.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append(dict(self.headers.items()))
                    outer.times.append(time.monotonic())
                    number = len(outer.calls)
                self._send(reply(number, body))

            def _send(self, said: Any) -> None:
                if isinstance(said, int | float):
                    time.sleep(said)
                    return
                status, content, headers = said if isinstance(said, tuple) else (200, said, {})
                if isinstance(content, str):
                    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                    content = {"object": "chat.completion", "choices": [choice]}
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def openai_error(status: int, message: str, code: str | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """An error as OpenAI's API documents it."""
    kind = "invalid_request_error" if status < 429 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}, headers


def google_error(status: int, message: str, name: str) -> tuple[int, Any, dict[str, str]]:
    """An error as Google's APIs document it."""
    return status, {"error": {"code": status, "message": message, "status": name}}, {}
