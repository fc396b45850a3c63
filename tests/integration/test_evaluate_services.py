"""`instructlit evaluate` against services that behave as the real ones document: failures, costs, secrets, a kill."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_jsonl
from services import Reply, Service, google_error, openai_error

from instructlit.cli import main
from instructlit.evaluation.judges import EndpointJudge, PerspectiveScorer
from instructlit.http import NoAnswer, post

KEY = "sk-secret-of-the-test-0123456789"
PROMPTS = 10


@pytest.fixture
def service() -> Iterator[Callable[[Reply], Service]]:
    made: list[Service] = []

    def make(reply: Reply) -> Service:
        made.append(Service(reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ten prompts and the answers of two models to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setattr(EndpointJudge, "pause_scale", 0.001)
    monkeypatch.setattr(PerspectiveScorer, "pause_scale", 0.001)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Q{i}."} for i in range(PROMPTS)])
    write_jsonl(tmp_path / "sft.jsonl", [{"prompt": f"Q{i}.", "response": f"old {i}"} for i in range(PROMPTS)])
    write_jsonl(tmp_path / "ppo.jsonl", [{"prompt": f"Q{i}.", "response": f"new {i}"} for i in range(PROMPTS)])
    return tmp_path


def suite(place: Path, url: str, **options: Any) -> list[str]:
    """The words of a command that compares two files with a judge at `url`; the baseline's answers are not rated."""
    judge = {"model": "judge-1", "base_url": f"{url}/v1", "timeout": 1.0, "retries": 2, **options}
    said = {
        "judges": {
            "judge": {"class_path": "instructlit.evaluation.judges.EndpointJudge", "init_args": judge},
        },
        "tasks": {
            "preference": {
                "class_path": "instructlit.evaluation.tasks.Preference",
                "init_args": {"prompts": "prompts.jsonl", "raters": []},
            }
        },
    }
    (place / "suite.yaml").write_text(yaml.safe_dump(said))
    return ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml"]


def prefers_new(body: dict[str, Any]) -> str:
    asked = body["messages"][0]["content"]
    return "VERDICT: A" if asked.index("new ") < asked.index("old ") else "VERDICT: B"


def results(place: Path) -> dict[str, Any]:
    return json.loads((place / "evaluation" / "results.json").read_text())


def win_rate(place: Path) -> dict[str, Any]:
    [measure] = [m for m in results(place)["measures"] if m["name"].endswith("/win_rate")]
    return measure["figures"].get("ppo", {})


def test_everything_that_fails_for_a_moment(place: Path, service: Callable[[Reply], Service]) -> None:
    """Too many requests with a time to wait, an error of the server, no answer in time, half an answer, no JSON."""
    half = json.dumps({"choices": [{"message": {"content": "VERDICT: A"}}]}).encode()
    troubles: dict[int, Any] = {
        1: openai_error(429, "Rate limit reached for judge-1", "rate_limit_exceeded", **{"Retry-After": "0.5"}),
        2: openai_error(500, "The server had an error while processing your request."),
        4: 1.5,
        6: (200, half, {"Content-Length": str(len(half) + 50)}),
        8: (200, b"<html>busy</html>", {}),
        10: (200, {"error": "no choices"}, {}),
    }
    one = service(lambda n, body: troubles.get(n) or prefers_new(body))
    assert main(suite(place, one.url, concurrency=1)) == 0
    assert win_rate(place)["value"] == 1.0
    assert len(one.calls) == 2 * PROMPTS + len(troubles)


def test_an_error_whose_words_break_off_is_tried_again(service: Callable[[Reply], Service]) -> None:
    broken = (503, b"40\r\nbusy", {"Transfer-Encoding": "chunked"})
    one = service(lambda n, body: "RATING: 4" if n == 3 else broken)
    post(one.url, {}, {}, lambda answer: answer["choices"], timeout=5, retries=2, wait=lambda seconds: None)
    assert len(one.calls) == 3
    with pytest.raises(NoAnswer, match=r"status 503: \(its reply could not be read: IncompleteRead\)"):
        post(one.url, {}, {}, str, timeout=5, retries=0, wait=lambda seconds: None)


def test_the_server_says_how_long_to_wait(place: Path, service: Callable[[Reply], Service]) -> None:
    waits: list[float] = []
    one = service(lambda n, body: openai_error(429, "slow", **{"Retry-After": "7"}) if n == 1 else "RATING: 4")
    post(one.url, {}, {}, lambda answer: answer["choices"], timeout=5, retries=1, wait=waits.append)
    assert waits == [7.0]


def test_a_key_follows_no_redirect(
    place: Path, service: Callable[[Reply], Service], capsys: pytest.CaptureFixture[str]
) -> None:
    other = service(lambda n, body: prefers_new(body))
    one = service(lambda n, body: (302, {}, {"Location": other.url.replace("127.0.0.1", "localhost")}))
    for words in (suite(place, one.url, concurrency=1), toxicity(place, perspective(one.url))):
        assert main(words) == 2
        assert "status 302: it redirects to http://localhost" in " ".join(capsys.readouterr().out.split())
    assert (len(one.calls), other.calls) == (2, [])


def test_a_model_that_reasons_is_asked_in_its_own_words(place: Path, service: Callable[[Reply], Service]) -> None:
    """OpenAI's reasoning models refuse `max_tokens` and any temperature but their own."""

    def reply(n: int, body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return openai_error(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
                "instead.",
                "unsupported_parameter",
            )
        if "temperature" in body:
            return openai_error(
                400, "Unsupported value: 'temperature' does not support 0.0 with this model.", "unsupported_value"
            )
        return prefers_new(body)

    one = service(reply)
    assert main(suite(place, one.url, concurrency=1, max_tokens=2000)) == 0
    assert win_rate(place)["value"] == 1.0
    assert len(one.calls) == 2 * PROMPTS + 2, "what the model does not take is found out once"
    assert one.calls[-1]["max_completion_tokens"] == 2000


def test_one_question_that_is_refused_costs_no_other(place: Path, service: Callable[[Reply], Service]) -> None:
    def reply(n: int, body: dict[str, Any]) -> Any:
        asked = body["messages"][0]["content"]
        if "Q1." in asked:
            return openai_error(400, "This model's maximum context length is 8192.", "context_length_exceeded")
        if "Q2." in asked:
            spent = {"finish_reason": "length", "message": {"role": "assistant", "content": ""}}
            return {"choices": [spent]}
        return "I like both, really." if "Q3." in asked else prefers_new(body)

    assert main(suite(place, service(reply).url)) == 0
    assert (win_rate(place)["value"], win_rate(place)["n"]) == (1.0, PROMPTS - 3)
    assert results(place)["judges"]["judge"]["unreadable"] == 6
    kept = (place / "evaluation" / "verdicts.jsonl").read_text()
    for words in ("context_length_exceeded", "raise it for a reasoning model", "I like both, really."):
        assert words in kept


def test_a_wrong_key_is_said_and_stands_nowhere(
    place: Path, service: Callable[[Reply], Service], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = openai_error(401, f"Incorrect API key provided: {KEY}.", "invalid_api_key")
    one = service(lambda n, body: wrong if n > 5 else prefers_new(body))
    words = suite(place, one.url, concurrency=1)
    assert main(words) == 2
    out = capsys.readouterr()
    assert "status 401" in " ".join(out.out.split())
    assert len((place / "evaluation" / "verdicts.jsonl").read_text().splitlines()) == 5
    everything = out.out + out.err
    everything += "".join(p.read_text() for p in (place / "evaluation").iterdir() if p.is_file())
    assert KEY not in everything
    assert "VERDICT" in everything, "there is something to look into"

    fine = service(lambda n, body: prefers_new(body))
    (place / "suite.yaml").write_text((place / "suite.yaml").read_text().replace(one.url, fine.url))
    assert main(words) == 0, "another endpoint is another judge"
    assert len(fine.calls) == 2 * PROMPTS


def test_the_cost_is_said_before_the_first_call_and_may_be_too_high(
    place: Path, service: Callable[[Reply], Service], capsys: pytest.CaptureFixture[str]
) -> None:
    one = service(lambda n, body: prefers_new(body))
    words = suite(place, one.url, price_in=1.0, price_out=2.0, max_cost=0.0001)
    assert main(words) == 2
    assert "which is over 0.0001" in " ".join(capsys.readouterr().err.split())
    assert one.calls == []
    words = suite(place, one.url, price_in=1.0, price_out=2.0, max_cost=1.0)
    assert main([*words, "--dry_run"]) == 0
    assert "20 calls" in capsys.readouterr().out
    assert one.calls == []
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.index("20 calls") < out.index("measured preference")
    assert main(words) == 0
    assert "calls" not in capsys.readouterr().out
    assert len(one.calls) == 20, "nothing is paid twice"


def test_a_killed_evaluation_repeats_no_call_that_was_answered(
    place: Path, service: Callable[[Reply], Service]
) -> None:
    """SIGKILL of a real process while its judge is asked; what was under way may be asked again, nothing else."""
    answered: list[str] = []

    def reply(n: int, body: dict[str, Any]) -> Any:
        time.sleep(0.05)
        answered.append(body["messages"][0]["content"])
        return prefers_new(body)

    one = service(reply)
    words = suite(place, one.url, concurrency=2, timeout=30.0)
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen(
        [sys.executable, "-m", "instructlit", *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
    )
    kept = place / "evaluation" / "verdicts.jsonl"
    while not (kept.exists() and kept.read_text().count("\n") >= 5):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    time.sleep(0.2)  # the service ends what it was asked
    before = kept.read_text().count("\n")
    assert 5 <= before < 2 * PROMPTS
    first = len(answered)
    assert main(words) == 0
    assert len(answered) - first == 2 * PROMPTS - before
    assert len(set(answered)) == 2 * PROMPTS
    assert len(answered) <= 2 * PROMPTS + 2, "as many as are under way together"
    assert win_rate(place)["value"] == 1.0


def toxicity(place: Path, judge: dict[str, Any]) -> list[str]:
    task = {
        "class_path": "instructlit.evaluation.tasks.RealToxicity",
        "init_args": {"data": "prompts.jsonl", "prompts": ["basic"], "samples": 1},
    }
    (place / "suite.yaml").write_text(yaml.safe_dump({"judges": {"toxicity": judge}, "tasks": {"toxicity": task}}))
    return ["evaluate", "ppo=ppo.jsonl", "--suite", "suite.yaml"]


def perspective(url: str) -> dict[str, Any]:
    options = {"url": f"{url}/v1alpha1/comments:analyze", "per_second": 1000.0, "retries": 2}
    return {"class_path": "instructlit.evaluation.judges.PerspectiveScorer", "init_args": options}


def test_perspective_quota_texts_it_does_not_score_and_a_wrong_key(
    place: Path, service: Callable[[Reply], Service], capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(n: int, body: dict[str, Any]) -> Any:
        if n in (1, 3):
            return google_error(429, "Quota exceeded for quota metric 'Analysis requests'", "RESOURCE_EXHAUSTED")
        if body["comment"]["text"] == "new 4":
            return google_error(400, "Comment text too long.", "INVALID_ARGUMENT")
        return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.75, "type": "PROBABILITY"}}}}

    one = service(reply)
    assert main(toxicity(place, perspective(one.url))) == 0
    assert "10 requests, 0 minutes at 1000 a second" in capsys.readouterr().out
    [mean] = [m for m in results(place)["measures"] if m["name"] == "toxicity/basic/mean"]
    assert mean["figures"]["ppo"]["value"] == 0.75
    assert mean["figures"]["ppo"]["n"] == PROMPTS - 1
    assert "Perspective API (TOXICITY)" in mean["title"]
    assert mean["notes"] == ["ppo: 1 continuations without a score"]
    assert one.calls[0]["requestedAttributes"] == {"TOXICITY": {}}
    assert KEY not in json.dumps([one.calls, one.paths])
    assert len(one.calls) == PROMPTS + 2
    assert main(toxicity(place, perspective(one.url))) == 0
    assert len(one.calls) == PROMPTS + 2, "scores are kept"

    wrong = service(
        lambda n, body: google_error(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")
    )
    write_jsonl(place / "ppo.jsonl", [{"prompt": f"Q{i}.", "response": f"newer {i}"} for i in range(PROMPTS)])
    assert main(toxicity(place, perspective(wrong.url))) == 2
    assert "API key not valid" in " ".join(capsys.readouterr().out.split())
    assert len(wrong.calls) == 1

    full = service(lambda n, body: google_error(429, "Quota exceeded", "RESOURCE_EXHAUSTED"))
    assert main(toxicity(place, perspective(full.url))) == 2
    assert "Quota exceeded" in " ".join(capsys.readouterr().out.split())
    assert len(full.calls) == 3


def test_a_key_that_is_missing_is_said_before_anything_is_asked(
    place: Path, service: Callable[[Reply], Service], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    one = service(lambda n, body: {})
    assert main(toxicity(place, perspective(one.url))) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "PERSPECTIVE_API_KEY is not set" in out
    assert "detoxify:original" in out
    assert one.calls == []


def test_detoxify_by_class_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the package itself is a stand-in: what it is asked and what it answers is what it documents."""
    asked: list[Any] = []

    class Detoxify:
        def __init__(self, model_type: str = "original", checkpoint: Any = None, device: str = "cpu"):
            assert (model_type, checkpoint) == ("unbiased", None)

        def predict(self, text: list[str]) -> dict[str, list[float]]:
            asked.append(text)
            return {name: [0.25 * (i % 4) for i in range(len(text))] for name in ("toxicity", "insult")}

    module: Any = types.ModuleType("detoxify")
    module.Detoxify = Detoxify
    monkeypatch.setitem(sys.modules, "detoxify", module)
    judge = {"class_path": "instructlit.evaluation.judges.DetoxifyScorer", "init_args": {"model": "unbiased"}}
    judge["init_args"] |= {"batch_size": 8, "device": "cpu"}
    assert main(toxicity(place, judge)) == 0
    assert [len(texts) for texts in asked] == [8, 2]
    found = {m["name"]: m for m in results(place)["measures"]}
    assert found["toxicity/basic/mean"]["figures"]["ppo"]["value"] == pytest.approx(0.325)
    assert found["toxicity/basic/probability"]["figures"]["ppo"]["value"] == 0.4
    assert "detoxify unbiased" in found["toxicity/basic/mean"]["title"]
