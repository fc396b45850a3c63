"""A vLLM server as a generation engine, over its OpenAI-compatible completions and its development endpoints.

What is used of it: `POST /v1/completions` with a prompt of ids, `logprobs` and `return_tokens_as_token_ids`,
`GET /v1/models`, and, under `VLLM_SERVER_DEV_MODE=1`, `POST /collective_rpc` with `reload_weights` and
`POST /reset_prefix_cache` (docs.vllm.ai: OpenAI-compatible server, sleep mode).
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from instructlit.errors import UserError, require, require_address
from instructlit.http import NoAnswer, ask, secret_key
from instructlit.models.ranks import on_first_rank_alone
from instructlit.rollout.engine import Sampling
from instructlit.rollout.external import ExternalEngine, Sample

_TOKEN = "token_id:"


class VLLMServer(ExternalEngine):
    """Samples from a running vLLM server, which reloads the policy from `folder` at every sync.

    Start it on that folder, a copy of the policy that training begins with:
    `VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --logprobs-mode processed_logprobs`. Without that mode its log-probs are
    those before the temperature, which is the same at temperature 1 only.

    Args:
        folder: the folder that the server was started on; it is replaced at every sync.
        url: of the server.
        api_key_variable: environment variable that holds the server's key; none is sent where it is not set.
        concurrency: requests at once, of one prompt each.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        folder: str,
        url: str = "http://127.0.0.1:8000",
        api_key_variable: str = "VLLM_API_KEY",
        concurrency: int = 256,
        timeout: float = 600.0,
    ):
        super().__init__(folder)
        require_address("engine.", url=url)
        require("a whole number above 0", "engine.", concurrency=concurrency)
        require("a finite number above 0", "engine.", timeout=timeout)
        self.url, self.api_key_variable = url.rstrip("/").removesuffix("/v1"), api_key_variable
        self.concurrency, self.timeout = concurrency, timeout
        self._name: str | None = None  # of the served model

    def reload(self, folder: Path) -> None:
        """One rank asks the server, which all of them share; a fault is raised on all."""

        def once() -> None:
            self._check_serves(folder)
            self._ask("/collective_rpc", {"method": "reload_weights"})
            self._ask("/reset_prefix_cache", {})  # what it holds was computed by the weights before

        on_first_rank_alone(once)

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling, eos: int, seeds: Sequence[int]) -> list[Sample]:
        if self._name is None:
            self._check_serves(Path(str(self.folder)).expanduser())
        common = {
            "model": self._name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            # all of them said, as the server takes what is not from the folder's generation_config.json
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # what that file names as ends besides is none to the trainer
            "stop_token_ids": [eos],
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }

        def one(ids: list[int], seed: int) -> Sample:
            reply = self._ask("/v1/completions", {**common, "prompt": ids, "seed": seed})
            try:
                told = reply["choices"][0]["logprobs"]
                tokens = [int(token.removeprefix(_TOKEN)) for token in told["tokens"]]
                return tokens, [float(value) for value in told["token_logprobs"]]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UserError(
                    f"the reply of {self.url} holds no ids with log-probs",
                    where="engine",
                    expected=f"logprobs of tokens as {_TOKEN}N: a vLLM that knows return_tokens_as_token_ids",
                ) from error

        with ThreadPoolExecutor(max(1, min(self.concurrency, len(prompts)))) as pool:
            return list(pool.map(one, prompts, seeds))

    def _check_serves(self, folder: Path) -> None:
        """Learn the served model's name; a server on another folder would never see the weights."""
        served = self._ask("/v1/models", None).get("data") or [{}]
        self._name, root = str(served[0].get("id")), served[0].get("root")
        if root is not None and Path(root).expanduser().resolve() != folder.resolve():
            raise UserError(
                f"the server at {self.url} serves {root}",
                where="engine.folder",
                expected=f"a server that was started on {folder}, where the policy's weights are written",
            )

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        key = secret_key(self.api_key_variable, "engine.api_key_variable")
        try:
            content = ask(self.url + path, body, {"Authorization": f"Bearer {key}"} if key else {}, self.timeout)
            return json.loads(content) if content.strip() else {}
        except (NoAnswer, ValueError) as error:
            unknown = isinstance(error, NoAnswer) and error.status == 404 and not path.startswith("/v1/")
            raise UserError(
                f"{self.url}{path} did not answer as it should: {error}",
                where="engine.url",
                expected="a vLLM server",
                fix="start it with VLLM_SERVER_DEV_MODE=1, without which it does not reload weights"
                if unknown
                else None,
            ) from error
