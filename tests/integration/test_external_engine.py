"""Engines outside the process: what crosses, when the weights do, and what is said where something is wrong.

The worker is a real process. vLLM is not installed here: its adapter speaks to a small server that implements the
documented endpoints over the same folder, and checks what it is sent.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from services import Service
from stage_helpers import FixedBatches, Recorder, ppo_module, prompt_batch, trainer, weights
from transformers import PreTrainedTokenizerFast

from instructlit.errors import UserError
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.modules.invariants import InvariantError
from instructlit.rollout import CachedEngine, ExternalEngine, Sampling, VLLMServer, WorkerEngine
from instructlit.rollout.external import _padded
from instructlit.rollout.forward import response_log_probs
from instructlit.rollout.worker_process import _Worker

TEXTS = ["abc", "a longer prompt", "?", "abc"]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerEngine]:
    """One process for all tests of the module, for to start it takes seconds; in a folder with a file called like a
    library."""
    engine, folder = WorkerEngine(batch_size=3), tmp_path_factory.mktemp("user")
    (folder / "tokenizers.py").write_text("raise ImportError('taken for the library')")
    with contextlib.chdir(folder):
        engine._started()
    yield engine
    if engine._process is not None:
        engine._process.kill()


@pytest.fixture
def model(tiny_llama_dir: Path) -> Any:
    return load_causal_lm(Backbone(str(tiny_llama_dir))).eval()


def changed(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_log_probs_are_float32_where_the_default_is_not() -> None:
    """Under `precision: bf16-true` Lightning makes 16 bits the default while a batch is trained on."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, log_probs = _padded([([5, 2], [-5.01, -0.003]), ([6, 2], [-1.0, -2.0])], 2, 2, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(log_probs, torch.tensor([[-5.01, -0.003], [-1.0, -2.0]]))


def check_samples(engine: ExternalEngine, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Greedy it says what `CachedEngine` says; sampled, its log-probs are the model's and a seed repeats."""
    batch = prompt_batch(TEXTS)
    theirs, ours = (e.generate(model, batch, Sampling(6, greedy=True), tokenizer) for e in (engine, CachedEngine()))
    assert torch.equal(theirs.response_ids, ours.response_ids)
    torch.testing.assert_close(theirs.log_probs, ours.log_probs, atol=1e-5, rtol=0)

    def sampled(seed: int) -> Any:
        return engine.generate(
            model, batch, Sampling(12, temperature=0.7), tokenizer, torch.Generator().manual_seed(seed)
        )

    first, again, other = sampled(1), sampled(1), sampled(2)
    assert first.texts == again.texts
    assert first.texts != other.texts
    with torch.no_grad():
        torch.testing.assert_close(first.log_probs, response_log_probs(model, first, 0.7), atol=1e-5, rtol=0)
    assert first.texts[0] != first.texts[3], "two samples of one prompt are two draws"


def test_a_worker_samples_from_the_weights_it_was_given_last(
    worker: WorkerEngine, model: Any, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    check_samples(worker, model, char_tokenizer)
    before = worker.generate(model, prompt_batch(TEXTS), Sampling(6, greedy=True), char_tokenizer)
    changed(model)
    worker.sync(model, char_tokenizer)
    check_samples(worker, model, char_tokenizer)
    after = worker.generate(model, prompt_batch(TEXTS), Sampling(6, greedy=True), char_tokenizer)
    assert not torch.equal(before.log_probs, after.log_probs)


def test_a_worker_outlives_sigterm_since_the_trainer_has_a_batch_to_finish(
    worker: WorkerEngine, model: Any, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    worker.sync(model, char_tokenizer)
    assert worker._process is not None
    worker._process.terminate()
    check_samples(worker, model, char_tokenizer)


def test_adapters_go_over_merged(worker: WorkerEngine, model: Any, char_tokenizer: PreTrainedTokenizerFast) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    changed(adapted)
    before = weights(adapted)
    worker.sync(adapted, char_tokenizer)
    assert torch.equal(weights(adapted), before)
    check_samples(worker, adapted, char_tokenizer)


def ppo_gaps(tmp_path: Path, folder: Path, tokenizer: Any, engine: Any, **options: Any) -> list[dict[str, float]]:
    torch.manual_seed(0)
    module, recorder = ppo_module(folder, episodes=24, engine=engine, **options), Recorder()
    batches = [{"prompts": prompt_batch(["ab", "c", "def", "g"] * 2)}] * 3
    trainer(tmp_path, callbacks=[recorder]).fit(module, datamodule=FixedBatches(tokenizer, batches))
    return recorder.rows


def test_ppo_hands_the_weights_over_before_every_rollout(
    worker: WorkerEngine, tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = ppo_gaps(tmp_path, tiny_llama_dir, char_tokenizer, worker)
    assert len(rows) == 3
    assert all(row["ppo/engine/gap"] < 1e-4 for row in rows)

    class Forgetful(WorkerEngine):
        """Keeps the weights of the first rollout."""

        def sync(self, model: Any, tokenizer: Any) -> None:
            if not self._synced:
                super().sync(model, tokenizer)

    stale = Forgetful()
    stale._process = worker._process  # the same worker, as starting one takes seconds
    rows = ppo_gaps(tmp_path, tiny_llama_dir, char_tokenizer, stale)
    assert rows[0]["ppo/engine/gap"] < 1e-4
    assert rows[2]["ppo/engine/gap"] > 1e-3


def test_a_worker_in_another_precision_needs_the_correction(
    worker: WorkerEngine, tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    coarse = WorkerEngine(dtype="bfloat16")
    coarse._process = worker._process
    with pytest.raises(InvariantError, match=r"log-probs differ.*\n.*\n.*sampler_correction"):
        ppo_gaps(tmp_path, tiny_llama_dir, char_tokenizer, coarse)
    rows = ppo_gaps(tmp_path, tiny_llama_dir, char_tokenizer, coarse, sampler_correction=2.0)
    assert all(1e-4 < row["ppo/engine/gap"] < 0.05 for row in rows)
    assert all(row["ppo/sampler/weight_mean"] == pytest.approx(1, abs=0.02) for row in rows)
    assert rows[0]["ppo/policy/ratio_mean"] == pytest.approx(1, abs=0.5)


def test_the_folder_of_the_policy_is_never_written_over(
    model: Any, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = VLLMServer(str(tiny_llama_dir))
    with pytest.raises(UserError, match="would be overwritten"):
        engine.sync(model, char_tokenizer)


def test_a_worker_that_fails_or_dies_is_told(
    worker: WorkerEngine, model: Any, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=r"sampling process failed: .*/no/such/folder"):
        worker.reload(Path("/no/such/folder"))
    worker.sync(model, char_tokenizer)
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(UserError, match="ended with status -9"):
        worker.generate(model, prompt_batch(TEXTS), Sampling(4), char_tokenizer)


# -- vLLM --------------------------------------------------------------------------------------------------------------


class FakeVLLM(ThreadingHTTPServer):
    """The endpoints that the adapter uses, as vLLM documents them, over the model in a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, root: Path | None = None, dev_mode: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.root, self.dev_mode = folder, root or folder, dev_mode
        self.worker, self.lock = _Worker(), threading.Lock()
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.tokens_as_ids = True
        self.worker.load(str(folder), "cpu", "float32")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "policy", "root": str(self.root)}]}
        if path == "/collective_rpc" and self.dev_mode:
            assert body == {"method": "reload_weights"}
            self.worker.load(str(self.folder), "cpu", "float32")
            return {"results": [None]}
        if path == "/reset_prefix_cache" and self.dev_mode:
            return {}
        return self.completion(body) if path == "/v1/completions" else None

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == "policy"
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
        assert (body["stop_token_ids"], body["ignore_eos"]) == ([2], True), "EOS alone ends a response"
        greedy, told = body["temperature"] == 0, body["return_tokens_as_token_ids"] and self.tokens_as_ids
        temperature = 1.0 if greedy else body["temperature"]
        found = self.worker.sample([body["prompt"]], body["max_tokens"], temperature, greedy, None, body["seed"])
        (ids,), (log_probs,) = found["ids"], found["log_probs"]
        tokens = [f"token_id:{i}" if told else chr(i) for i in ids]
        logprobs = {"tokens": tokens, "token_logprobs": log_probs, "top_logprobs": None, "text_offset": []}
        return {"object": "text_completion", "choices": [{"index": 0, "text": "", "logprobs": logprobs}]}


class _Handler(BaseHTTPRequestHandler):
    server: FakeVLLM  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._reply(body)

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, body: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.asked.append((self.path, body, self.headers.get("Authorization")))
            found = self.server.answer(self.path, body)
        content = json.dumps(found if found is not None else {"detail": "Not Found"}).encode()
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def rollouts(tmp_path: Path, model: Any, char_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A copy of the policy, as the server is started on it."""
    model.save_pretrained(tmp_path / "rollouts")
    char_tokenizer.save_pretrained(tmp_path / "rollouts")
    return tmp_path / "rollouts"


def test_vllm_samples_from_the_weights_it_was_given_last(
    rollouts: Path, model: Any, char_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    server = FakeVLLM(rollouts)
    engine = VLLMServer(str(rollouts), server.url + "/v1", concurrency=2)
    changed(model)
    check_samples(engine, model, char_tokenizer)  # which hands the weights over by itself, the first time
    first = [path for path, _, _ in server.asked[:4]]
    assert first == ["/v1/models", "/collective_rpc", "/reset_prefix_cache", "/v1/completions"]
    assert {key for _, _, key in server.asked} == {"Bearer a-key"}
    changed(model)
    engine.sync(model, char_tokenizer)
    check_samples(engine, model, char_tokenizer)
    server.shutdown()


def test_ppo_with_vllm(
    rollouts: Path, tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    server = FakeVLLM(rollouts)
    engine = VLLMServer(str(rollouts), server.url)
    rows = ppo_gaps(tmp_path, tiny_llama_dir, char_tokenizer, engine, sampler_correction=2.0)
    assert all(row["ppo/engine/gap"] < 1e-4 for row in rows)
    assert sum(path == "/collective_rpc" for path, _, _ in server.asked) == 3
    server.shutdown()


@pytest.mark.parametrize("what", ["another folder", "no dev mode", "no ids", "away", "short"])
def test_what_a_server_cannot_do_is_said(
    what: str, rollouts: Path, tmp_path: Path, model: Any, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    server = FakeVLLM(rollouts, root=tmp_path if what == "another folder" else None, dev_mode=what != "no dev mode")
    server.tokens_as_ids = what != "no ids"
    url = "http://127.0.0.1:9" if what == "away" else server.url
    if what == "short":  # as a server does whose context is full
        server.completion = lambda body: {  # type: ignore[method-assign]
            "choices": [{"logprobs": {"tokens": ["token_id:97"], "token_logprobs": [-1.0]}}]
        }
    message = {
        "another folder": f"serves {tmp_path}\n.*started on {rollouts}",
        "no dev mode": r"status 404(.|\n)*VLLM_SERVER_DEV_MODE=1",
        "no ids": "no ids with log-probs",
        "away": "did not answer",
        "short": "1 tokens and 1 log-probs that neither ends with EOS nor has the requested length",
    }[what]
    with pytest.raises(UserError, match=message):
        VLLMServer(str(rollouts), url).generate(model, prompt_batch(TEXTS), Sampling(6), char_tokenizer)
    server.shutdown()


def test_a_key_follows_no_redirect_and_stands_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Service(lambda n, body: {})
    elsewhere = (302, {}, {"Location": other.url.replace("127.0.0.1", "localhost")})
    server = Service(lambda n, body: elsewhere if n == 1 else (401, {"detail": "who is a-key?"}, {}))
    engine = VLLMServer("policy", server.url)
    for key, message in (("a-key", "302: it redirects"), ("a-key", "401"), ("a-\nkey", "VLLM_API_KEY is not a key")):
        monkeypatch.setenv("VLLM_API_KEY", key)
        with pytest.raises(UserError, match=message) as caught:
            engine._ask("/reset_prefix_cache", {})
        assert key not in str(caught.value)
    assert (len(server.calls), other.calls) == (2, [])
    server.close()
    other.close()
