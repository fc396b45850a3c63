"""The alignment tax: perplexity on held-out text, and tasks of lm-eval, zero- and few-shot.

lm-eval builds the prompts, filters the answers and scores them; our models reply through our own engine, so that
replies are kept like all others and every document has a score for a paired interval.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from instructlit.data.sources import Place, as_source
from instructlit.errors import UserError, first_line, not_installed, require
from instructlit.evaluation.datasets import needed, read_rows
from instructlit.evaluation.measures import PERCENT, Measure, Outcome, Study, measured
from instructlit.evaluation.requests import Answer, Ask, Reply, Request, Weigh, Weights
from instructlit.evaluation.task import Task
from instructlit.evaluation.tasks import squad


class Perplexity(Task):
    """Perplexity per token on text, and bits per byte, which is comparable across tokenizers.

    Args:
        data: rows with `text`, or a .txt file, which is split at line ends into pieces.
        limit: use only this many texts or pieces, the first ones.
        characters: length of a piece of a .txt file.
        name: part of the columns' names.
        documents: every row is a document as in pretraining: its end counts, and its first token, which nothing
            predicts, does not.
    """

    def __init__(
        self,
        data: Place | None = None,
        limit: int | None = None,
        characters: int = 4000,
        name: str = "heldout",
        documents: bool = False,
    ):
        require("a whole number above 0", characters=characters)
        self.data, self.limit, self.characters, self.name = data, limit, characters, name
        self.documents = documents
        self._texts: list[str] = []

    def requests(self) -> Sequence[Request]:
        data = needed(self.data, "perplexity.data", "held-out text is")
        path = as_source(data).path
        if path.lower().endswith(".txt"):
            self._texts = pieces(path, self.characters)[: self.limit]
        else:
            self._texts = [str(row["text"]) for row in read_rows(data, "data", "text", limit=self.limit)]
        return [Weigh("", (text,), document=self.documents) for text in self._texts]

    def measure(self, study: Study) -> Outcome:
        replies = {m: [r if isinstance(r, Weights) else None for r in study.replies[m]] for m in study.models}
        losses = {m: [None if r is None else -r.log_probs[0] for r in own] for m, own in replies.items()}
        tokens = {m: [0.0 if r is None else float(r.tokens[0]) for r in own] for m, own in replies.items()}
        bits = {m: [None if x is None else x / math.log(2) for x in own] for m, own in losses.items()}
        size = [float(len(text.encode())) for text in self._texts]
        counted = {m: [0.0 if r is None else n for r, n in zip(own, size, strict=True)] for m, own in replies.items()}
        perplexity = Measure(
            f"perplexity/{self.name}/token",
            f"perplexity, {self.name}",
            "exp of the mean loss per token on held-out text; comparable between models with the same tokenizer.",
            "{:.2f}",
            "down",
        )
        byte = Measure(
            f"perplexity/{self.name}/bits_per_byte",
            f"bits per byte, {self.name}",
            "Loss in bits per byte of held-out text; comparable across tokenizers.",
            better="down",
        )
        outcome = Outcome([measured(study, perplexity, losses, weights=tokens, transform=np.exp)])
        if not self.documents:  # there a token that is not text counts, and some text does not
            outcome.measures.append(measured(study, byte, bits, weights=counted))
        return outcome


class LmEval(Task):
    """Tasks from EleutherAI's lm-eval (extra `eval`).

    Args:
        tasks: names of lm-eval's tasks, such as hellaswag or squadv2, or paths of its YAML files.
        num_fewshot: examples before each question; null takes the task's own number.
        limit: use only this many documents, the first ones.
        include_path: folder with task files of your own.
        max_new_tokens: most tokens of an answer if the task sets no limit.
    """

    def __init__(
        self,
        tasks: list[str],
        num_fewshot: int | None = None,
        limit: int | None = None,
        include_path: str | None = None,
        max_new_tokens: int = 256,
    ):
        require("a whole number, 0 or more", num_fewshot=num_fewshot)
        self.names, self.num_fewshot, self.limit = tasks, num_fewshot, limit
        self.include_path, self.max_new_tokens = include_path, max_new_tokens
        self._tasks: dict[str, Any] = {}
        self._missing: list[str] = []  # why tasks cannot be loaded

    def requests(self) -> Sequence[Request]:
        self._missing = []
        self._tasks = self._loaded()
        return [self._request(instance) for task in self._tasks.values() for instance in task.instances]

    def measure(self, study: Study) -> Outcome:
        outcome, start = Outcome(notes=list(self._missing)), 0
        for name, task in self._tasks.items():
            stop = start + len(task.instances)
            scores: dict[str, dict[str, list[float | None]]] = {}
            left_out: dict[str, None] = {}
            for model in study.models:
                found, unscored = document_scores(task, study.replies[model][start:stop])
                for metric, values in found.items():
                    scores.setdefault(metric, {})[model] = values
                left_out |= dict.fromkeys(unscored)
            start = stop
            if left_out:
                told = "left out, since lm-eval computes them over all documents together"
                outcome.notes.append(f"{name}: {', '.join(left_out)} {told}")
            for metric, values in scores.items():
                outcome.measures.append(self._column(study, name, task, metric, values))
        return outcome

    def _column(
        self, study: Study, name: str, task: Any, metric: str, values: dict[str, list[float | None]]
    ) -> Measure:
        shots = task.config.num_fewshot or 0
        binary = all(v in (None, 0.0, 1.0) for own in values.values() for v in own)
        measure = Measure(
            f"lm_eval/{name}/{shots}_shot/{metric}",
            f"{name} {metric}, {shots}-shot",
            f"lm-eval's {metric} on {name} with {shots} examples.",
            PERCENT if binary else "{:.3f}",
            "up" if task.higher_is_better().get(metric, True) else "down",
        )
        return measured(study, measure, values, share=binary)

    def _request(self, instance: Any) -> Request:
        kind, given = instance.request_type, instance.args
        if kind == "loglikelihood":
            return Weigh(given[0], (given[1],))
        if kind == "loglikelihood_rolling":
            return Weigh("", (given[0],))
        options = given[1]
        until = options.get("until") or []
        return Ask(
            given[0],
            int(options.get("max_gen_toks") or self.max_new_tokens),
            float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0,
            stop=tuple([until] if isinstance(until, str) else until),
            plain=True,
        )

    def _own(self) -> bool:
        """Whether every task is a file of the user's: loading all of lm-eval's takes seconds."""
        folder = self.include_path
        return folder is not None and all((Path(folder) / f"{name}.yaml").is_file() for name in self.names)

    def _loaded(self) -> dict[str, Any]:
        try:
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            raise not_installed(error, "lm_eval") from error
        found: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            manager = TaskManager(include_path=self.include_path, include_defaults=not self._own())
            for name in self.names:
                try:
                    found |= manager.load([name])["tasks"]
                except Exception as error:  # lm-eval, datasets and the Hub client raise their own kinds
                    self._missing.append(f"lm-eval cannot load {name}: {first_line(error)}")
            if not found:
                raise UserError(
                    "; ".join(self._missing),
                    where="lm_eval.tasks",
                    expected="names that lm-eval lists, with data sets that can be loaded",
                    fix="`lm_eval ls tasks` lists them",
                )
            for task in found.values():
                if self.num_fewshot is not None:
                    task.set_config(key="num_fewshot", value=self.num_fewshot)
                task.set_fewshot_seed(seed=1234)
                task.build_all_requests(limit=self.limit)
        return found


def document_scores(task: Any, replies: Sequence[Reply | None]) -> tuple[dict[str, list[float | None]], list[str]]:
    """For each metric the score of every document of a task, None if a reply is missing; and the other metrics.

    Those are not means over documents (such as an F1 over the whole set) and have no paired interval.

    Args:
        task: lm-eval's task with its instances.
        replies: one for each instance, in their order.
    """
    given = dict(zip(map(id, task.instances), replies, strict=True))
    by_doc: dict[Any, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    whole = {doc for doc, own in by_doc.items() if all(given[id(i)] is not None for i in own)}
    before = task.instances
    try:
        fresh = []
        for instance in before:
            if instance.doc_id in whole:
                copy = deepcopy(instance)
                copy.resps, copy.filtered_resps = [_response(instance, given[id(instance)])], {}
                fresh.append(copy)
        task._instances = fresh
        task.apply_filters()
    finally:
        task._instances = before
    copies: dict[Any, list[Any]] = {}
    for copy in fresh:
        copies.setdefault(copy.doc_id, []).append(copy)
    found: dict[str, list[float | None]] = {}
    unscored: dict[str, None] = {}
    for place, doc in enumerate(by_doc):
        if doc not in whole:
            continue
        own = sorted(copies[doc], key=lambda i: i.idx)
        names = list(own[0].filtered_resps)
        metrics = task.process_results(own[0].doc, [i.filtered_resps[names[0]] for i in own])
        for metric, value in metrics.items():
            if (score := _score(metric, value)) is None:
                unscored[metric] = None
            else:
                found.setdefault(metric, [None] * len(by_doc))[place] = score
    return found, list(unscored)


def pieces(path: str, characters: int) -> list[str]:
    """A text file split at line ends into pieces of about that many characters.

    Raises:
        UserError: no such file, or nothing in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no such file: {path}", where="data", expected="a text file, or rows with text")
    found, own = [], ""
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        own += line
        if len(own) >= characters:
            found.append(own)
            own = ""
    found += [own] if own.strip() else []
    if not found:
        raise UserError("the file is empty", where=path, expected="text")
    return found


def _score(metric: str, value: Any) -> float | None:
    """A metric's value for one document; None if it is only defined over all of them."""
    match value:
        case bool() | int() | float() | np.number():
            return float(value)
        case ({"prediction_text": said}, {"answers": {"text": right}}) if metric in _SQUAD:
            return _SQUAD[metric](said, right)
    return None


_SQUAD = {"exact": squad.exact, "f1": squad.f1}


def _response(instance: Any, reply: Reply | None) -> Any:
    if isinstance(reply, Answer):
        return reply.text
    assert isinstance(reply, Weights)
    if instance.request_type == "loglikelihood_rolling":
        return reply.log_probs[0]
    return reply.log_probs[0], reply.greedy[0]
