"""What is evaluated: a model, loaded when it is first needed, or a file of existing answers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructlit.data.fields import Fields
from instructlit.data.rows import value_hash
from instructlit.data.sources import Source
from instructlit.errors import UserError
from instructlit.evaluation.datasets import read_rows
from instructlit.evaluation.requests import Answer, Ask, Reply, Request
from instructlit.models.folders import trunk_of
from instructlit.types import PromptText

_TEXTS = ("response", "completion", "completions", "responses", "output", "answer")


class Subject(ABC):
    """One row of the table.

    Args:
        name: its name in the table.
        told: its description, for the report.
        prefix: text before every prompt that it answers, as the paper prompts GPT-3 to follow instructions.
    """

    stored = True
    """Whether its replies are stored."""

    def __init__(self, name: str, told: str, prefix: str = ""):
        self.name, self.prefix = name, prefix
        self.told = f"{told}, prefixed with “{prefix.strip()}”" if prefix else told

    def asked(self, request: Request) -> Request:
        """The request as this model gets it."""
        return request.of(self.name, self.prefix) if isinstance(request, Ask) else request

    @abstractmethod
    def identity(self) -> str:
        """All that its replies depend on: with another identity it is asked again."""

    @abstractmethod
    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | None]]:
        """The reply to every request with its index; None if it cannot reply."""

    def check(self) -> None:  # noqa: B027 - optional
        """Called before any model replies, which may take hours: check this one, as far as that is possible without
        loading its weights.

        Raises:
            UserError: a folder that does not exist or is incomplete.
        """

    def release(self) -> None:  # noqa: B027 - optional
        """Called when no more replies are needed: memory can be freed."""


class ModelSubject(Subject):
    """A language model.

    Args:
        name: its name in the table.
        path: its folder or Hub name.
        load: makes the `LanguageModel`; not called if every reply is in the store.
        options: template, dtype and all else that its replies depend on.
        prefix: as above.
        beneath: folders or Hub names that a checkpoint takes the rest of the model from.
        check: raises what `Subject.check` does.
    """

    def __init__(
        self,
        name: str,
        path: str,
        load: Callable[[], Any],
        options: dict[str, Any] | None = None,
        prefix: str = "",
        beneath: Callable[[], Sequence[str]] = lambda: (),
        check: Callable[[], object] = lambda: None,
    ):
        super().__init__(name, path, prefix)
        self.path, self._load, self._options, self._model = path, load, options or {}, None
        self._beneath, self._check = beneath, check

    def identity(self) -> str:
        return value_hash([*map(fingerprint, (self.path, *self._beneath())), self._options])

    def check(self) -> None:
        self._check()

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | None]]:
        if self._model is None:
            self._model = self._load()
        yield from self._model.replies(requests)

    def release(self) -> None:
        self._model = None


class FileSubject(Subject):
    """Existing answers: rows with `prompt` and `response`, several rows (or a list) for several samples.

    A prompt is found by its exact text. Requests for log-probabilities have no reply.

    Raises:
        UserError: a row without prompt or response, or whose response is not text.
    """

    stored = False

    def __init__(self, name: str, path: str):
        super().__init__(name, path)
        self._texts: dict[str, list[str]] = {}
        for number, row in enumerate(read_rows(Source(path), f"--models {name}", "prompt"), start=1):
            field = next((f for f in _TEXTS if f in row), "")
            said = row.get(field)
            texts = [said] if isinstance(said, str) else said
            if not isinstance(texts, list) or not texts:
                raise UserError(
                    f"row {number} has no response text",
                    where=f"--models {name}={path}",
                    expected="rows with prompt and response",
                )
            place = Fields(row, f"--models {name}={path}: row {number}")
            self._texts.setdefault(_spelled(row["prompt"]), []).extend(place.as_text(text, field) for text in texts)

    def identity(self) -> str:
        return value_hash(fingerprint(self.told))

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | None]]:
        for i, request in enumerate(requests):
            texts = self._texts.get(_spelled(request.prompt)) if isinstance(request, Ask) else None
            yield i, Answer(texts[: request.samples]) if texts and isinstance(request, Ask) else None


def fingerprint(path: str) -> Any:
    """Identifies the state of a folder or file: names, sizes and times of its files, and of the trunk that a folder of
    adapters names; for a Hub name the name itself."""
    place = Path(path).expanduser()
    if place.is_file():
        return [str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns]
    if place.is_dir():
        trunk = trunk_of(path)
        return [str(place.resolve()), *_listed(place), *([fingerprint(trunk)] if trunk else [])]
    return path


def _listed(folder: Path) -> list[list[Any]]:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _spelled(prompt: PromptText) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
