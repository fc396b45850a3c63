"""A judge model behind an endpoint that speaks OpenAI's chat completions, which most servers do."""

import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from instructlit.errors import UserError
from instructlit.evaluation.judges.text import TextJudge, judging_prompt
from instructlit.evaluation.judging import Question, Verdict
from instructlit.redaction import without_secrets

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_CHARACTERS_A_TOKEN = 4  # of English text; only for the estimate


class EndpointJudge(TextJudge):
    """Asks a judge model at an OpenAI-compatible endpoint, several questions at a time.

    Every verdict is kept as it comes, so that a question is paid once. What fails for a moment (no answer in time, too
    many requests, a server error) is tried again with growing pauses; what fails for good ends the judging, and what
    was judged is kept.

    Args:
        model: name of the judge model.
        base_url: the endpoint up to and without `/chat/completions`.
        api_key_env: environment variable that holds the key; it is read when asking and never written down.
        temperature: of the judge's sampling.
        max_tokens: most tokens in a reply; a judge that reasons needs more than the default.
        concurrency: questions under way together.
        timeout: seconds to wait for one reply.
        retries: further tries of a question before it is given up.
        price_in: price of a million tokens read, in whatever currency you think in; for the estimate.
        price_out: price of a million tokens written.
        max_cost: refuse to start where the estimate is higher; needs the prices.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 16,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        price_in: float | None = None,
        price_out: float | None = None,
        max_cost: float | None = None,
    ):
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise UserError(f"{base_url} is no web address", where="judge.base_url", expected="http://… or https://…")
        self.model, self.base_url, self.api_key_env = model, base_url.rstrip("/"), api_key_env
        self.temperature, self.max_tokens, self.concurrency = temperature, max_tokens, concurrency
        self.timeout, self.retries = timeout, retries
        self.price_in, self.price_out, self.max_cost = price_in, price_out, max_cost

    @property
    def title(self) -> str:
        return self.model

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "at": self.base_url, "temperature": self.temperature, "tokens": self.max_tokens}

    def cost(self, questions: Sequence[Question]) -> str:
        """Calls, tokens and, where prices are given, their price.

        Raises:
            UserError: it is over `max_cost`.
        """
        read = sum(len(judging_prompt(q)) for q in questions) // _CHARACTERS_A_TOKEN
        written = len(questions) * self.max_tokens
        text = f"{len(questions):,} calls, about {read:,} tokens to read and at most {written:,} to write"
        if self.price_in is None or self.price_out is None:
            if self.max_cost is not None:
                raise UserError(
                    "max_cost needs prices",
                    where="judge.max_cost",
                    fix="set price_in and price_out, a million tokens each",
                )
            return f"{text}; no prices are given"
        price = (read * self.price_in + written * self.price_out) / 1e6
        if self.max_cost is not None and price > self.max_cost:
            raise UserError(
                f"{text}: at most about {price:.2f}, which is over {self.max_cost:.2f}",
                where="judge.max_cost",
                fix="raise max_cost, or judge fewer prompts with --limit",
            )
        return f"{text}: at most about {price:.2f} at the prices given"

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        if self.max_cost is not None:
            self.cost(questions)  # whoever did not ask before is stopped here
        yield from super().verdicts(questions)

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Workers take prompts from a queue; replies are handed on as they come."""
        headers = {"Content-Type": "application/json", **self._authorization()}
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(prompts)):
            waiting.put(i)
        done: queue.SimpleQueue[tuple[int, str | Exception]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, self._reply(prompts[i], headers, stop)))
                except Exception as error:  # handed to the thread that asked; nothing more is begun
                    stop.set()
                    done.put((i, error))

        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(prompts)))]
        for worker in workers:
            worker.start()
        fault: Exception | None = None
        try:
            for _ in prompts:
                i, said = done.get()
                if isinstance(said, Exception):
                    fault = said
                    break
                yield i, said
        finally:
            stop.set()
        if fault is None:
            return
        for worker in workers:  # what is under way is paid for: it is kept
            worker.join(self.timeout)
        while not done.empty():
            i, said = done.get()
            if isinstance(said, str):
                yield i, said
        raise fault

    def _authorization(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env, "").strip()
        if key:
            return {"Authorization": f"Bearer {key}"}
        host = urlsplit(self.base_url).hostname or ""
        if host in ("localhost", "127.0.0.1", "::1"):
            return {}
        raise UserError(
            f"the endpoint {self.base_url} needs a key and {self.api_key_env} is not set",
            where="judge.api_key_env",
            expected="the name of an environment variable with the key in it",
            fix=f"export {self.api_key_env}=…",
        )

    def _reply(self, prompt: str, headers: dict[str, str], stop: threading.Event) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        reason = ""
        for attempt in range(self.retries + 1):
            pause = min(2.0**attempt, 60.0)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _content(json.load(answer))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {_told(error)}"
                if error.code not in _AGAIN:
                    break
                pause = _wish(error.headers.get("Retry-After"), pause)
            except (OSError, ValueError) as error:  # no connection, no answer in time, half an answer
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries and stop.wait(pause * self.pause_scale):
                break
        raise UserError(
            f"the judge {self.model} gave no reply: {without_secrets(reason)}",
            where=f"{self.base_url}/chat/completions",
            expected=f"a chat completion within {self.timeout:g} s and {self.retries} further tries",
            fix="start again when it answers; what was judged is kept",
        )

    pause_scale = 1.0
    """Pauses between tries are multiplied by this."""


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {str(answer)[:200]}") from error


def _told(error: urllib.error.HTTPError) -> str:
    return error.read(300).decode("utf-8", "replace").replace("\n", " ").strip()


def _wish(header: str | None, default: float) -> float:
    """The seconds a server asks to wait, at most two minutes."""
    try:
        return min(max(float(header or ""), 0.0), 120.0)
    except ValueError:
        return default
