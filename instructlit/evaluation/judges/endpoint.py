"""A judge model behind an endpoint that speaks OpenAI's chat completions, which most servers do."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from instructlit.errors import UserError, counted, require, require_address
from instructlit.evaluation.judges.text import TextJudge, judging_prompt
from instructlit.evaluation.judging import Question, Verdict
from instructlit.http import NoAnswer, post, secret_key
from instructlit.redaction import without_secrets

_OF_THE_QUESTION = ("context_length_exceeded", "content_filter", "content_policy_violation", "invalid_prompt")
"""Errors that concern one question only: the others can still be asked."""
_CHARACTERS_A_TOKEN = 4  # of English text; only for the estimate


class EndpointJudge(TextJudge):
    """Asks a judge model at an OpenAI-compatible endpoint, several questions at a time.

    Every verdict is kept as it arrives, so that a question is paid for once. Temporary failures (no answer in time, too
    many requests, a server error) are retried with growing pauses; a permanent one ends the judging, and the verdicts
    so far are kept.

    Args:
        model: name of the judge model.
        base_url: the endpoint up to and without `/chat/completions`.
        api_key_env: environment variable that holds the key; it is read for each run and never written down.
        temperature: temperature of the judge's sampling.
        max_tokens: most tokens in a reply; a judge that reasons needs more than the default.
        concurrency: number of concurrent requests.
        timeout: seconds to wait for one reply.
        retries: how often a failed request is retried.
        price_in: price of a million input tokens, in any currency; for the estimate.
        price_out: price of a million output tokens.
        max_cost: refuse to start if the estimate is higher; needs the prices.
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
        require_address("judge.", base_url=base_url)
        require("a whole number above 0", "judge.", max_tokens=max_tokens, concurrency=concurrency)
        require("a whole number, 0 or more", "judge.", retries=retries)
        require("a finite number above 0", "judge.", timeout=timeout)
        costs = {"price_in": price_in, "price_out": price_out, "max_cost": max_cost}
        require("a finite number, 0 or more", "judge.", temperature=temperature, **costs)
        self.model, self.base_url, self.api_key_env = model, base_url.rstrip("/"), api_key_env
        self.temperature, self.max_tokens, self.concurrency = temperature, max_tokens, concurrency
        self.timeout, self.retries = timeout, retries
        self.price_in, self.price_out, self.max_cost = price_in, price_out, max_cost
        self._limit = "max_tokens"  # its name in a request
        self._temperature: float | None = temperature

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
        text = f"{counted(len(questions), 'call')}, about {read:,} input tokens and at most {written:,} output tokens"
        if self.price_in is None or self.price_out is None:
            if self.max_cost is not None:
                raise UserError(
                    "max_cost needs prices",
                    where="judge.max_cost",
                    fix="set price_in and price_out, the prices of a million tokens",
                )
            return f"{text}; no prices are given"
        price = (read * self.price_in + written * self.price_out) / 1e6
        if self.max_cost is not None and price > self.max_cost:
            raise UserError(
                f"{text}: at most about {_money(price)}, which is over {_money(self.max_cost)}",
                where="judge.max_cost",
                fix="raise max_cost, or judge fewer prompts with --limit",
            )
        return f"{text}: at most about {_money(price)} at the prices given"

    def check(self) -> None:
        self._authorization()

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        if self.max_cost is not None:
            self.cost(questions)  # for callers that did not ask for the cost first
        yield from super().verdicts(questions)

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Workers take prompts from a queue; replies are yielded as they arrive.

        A new request starts only when an earlier reply has been kept, as it has when the next one is requested: after a
        kill at most `concurrency` of them are paid for again.
        """
        headers = self._authorization()
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(prompts)):
            waiting.put(i)
        done: queue.SimpleQueue[tuple[int, str | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        free = threading.Semaphore(self.concurrency)

        def work() -> None:
            while free.acquire() and not stop.is_set():
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, self._reply(prompts[i], headers, stop)))
                except Exception as error:  # passed to the calling thread; no further request is started
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
                free.release()
        finally:
            stop.set()
            free.release(self.concurrency)
        if fault is None:
            return
        for worker in workers:  # pending requests are paid for: their replies are kept
            worker.join(self.timeout)
        while not done.empty():
            i, said = done.get()
            if isinstance(said, str):
                yield i, said
        raise fault

    def _authorization(self) -> dict[str, str]:
        if key := secret_key(self.api_key_env, "judge.api_key_env"):
            return {"Authorization": f"Bearer {key}"}
        host = urlsplit(self.base_url).hostname or ""
        if host in ("localhost", "127.0.0.1", "::1"):
            return {}
        raise UserError(
            f"the endpoint {self.base_url} needs a key, but {self.api_key_env} is not set",
            where="judge.api_key_env",
            expected="the name of an environment variable that holds the key",
            fix=f"export {self.api_key_env}=…",
        )

    def _reply(self, prompt: str, headers: dict[str, str], stop: threading.Event) -> str:
        address = f"{self.base_url}/chat/completions"
        while True:
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                self._limit: self.max_tokens,
                **({} if self._temperature is None else {"temperature": self._temperature}),
            }
            try:
                return post(
                    address,
                    body,
                    headers,
                    _content,
                    timeout=self.timeout,
                    retries=self.retries,
                    wait=lambda seconds: stop.wait(seconds * self.pause_scale),
                )
            except NoAnswer as fault:
                if fault.status == 400 and self._adapted(fault.told, body):
                    continue
                code = next((code for code in _OF_THE_QUESTION if code in fault.told), None)
                if fault.status == 400 and code:
                    return f"(the endpoint does not judge this: {code})"
                reason = without_secrets(str(fault))[:400]
                raise UserError(
                    f"the judge {self.model} gave no reply: {reason}",
                    where=without_secrets(address),
                    expected=f"a chat completion within {self.timeout:g} s and {self.retries} retries",
                    fix="run the same command again once it answers; existing verdicts are kept",
                ) from None

    def _adapted(self, told: str, body: dict[str, Any]) -> bool:
        """Reasoning models use another name for the limit, and take no temperature. Whether to send the request again
        without what the endpoint has just refused."""
        if "max_completion_tokens" in told and "max_tokens" in body:
            self._limit = "max_completion_tokens"
            return True
        if "temperature" in told and "temperature" in body:
            self._temperature = None
            return True
        return False

    pause_scale = 1.0
    """Pauses between retries are multiplied by this."""


def _money(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 0.1 else f"{amount:.2g}"


def _content(answer: Any) -> str:
    """The reply of a chat completion; without one the reason in brackets, such as a limit used up by reasoning."""
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not text and choice.get("finish_reason") == "length":
        return "(no reply within max_tokens: raise it for a reasoning model)"
    return str(text or choice["message"].get("refusal") or "")
