"""Hub names with and without an answer from the Hub, which is played here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from instructlit.data import hub
from instructlit.data.hub import reachable
from instructlit.errors import UserError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Answers are remembered for a process; no test may see another's."""
    reachable.cache_clear()
    yield
    reachable.cache_clear()


def answering(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[dict[str, Any]]:
    """A Hub that says yes, or fails with `error`; returns the list its calls go to."""
    calls: list[dict[str, Any]] = []

    def model_info(_: Any, name: str, **options: Any) -> None:
        calls.append({"name": name, **options})
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return calls


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    made = kind.__new__(kind)  # the constructors differ between versions of huggingface_hub
    Exception.__init__(made, f"{status} says the Hub")
    made.response = httpx.Response(status)  # type: ignore[assignment]
    return made


def test_a_name_that_the_hub_knows_is_asked_for_once_with_little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, None)
    assert reachable("org/model", "v1", "m.path") == reachable("org/model", "v1", "m.path") == "org/model"
    assert calls == [{"name": "org/model", "revision": "v1", "timeout": hub.PATIENCE}]


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (RepositoryNotFoundError, 404, "has no such model"),
        (GatedRepoError, 403, "accepted its terms"),
        (RevisionNotFoundError, 404, "has no revision v9"),
        (HfHubHTTPError, 400, "rejected the request: 400 says the Hub"),
    ],
)
def test_a_refusal_says_why(
    monkeypatch: pytest.MonkeyPatch, kind: type[HfHubHTTPError], status: int, words: str
) -> None:
    answering(monkeypatch, refusal(kind, status))
    with pytest.raises(UserError, match=rf"m\.path: .*{words}"):
        reachable("org/model", "v9", "m.path")


@pytest.mark.parametrize(
    "error", [OSError("Name or service not known"), TimeoutError(), refusal(HfHubHTTPError, 503)], ids=str
)
def test_without_an_answer_the_cache_serves_or_the_message_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    answering(monkeypatch, error)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"did not answer[\s\S]*download the model first"):
        reachable("org/model", None, "m.path")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "s" / "config.json"))
    assert reachable("org/model", None, "m.path") == str(tmp_path / "s")
