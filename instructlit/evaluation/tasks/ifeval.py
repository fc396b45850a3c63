"""IFEval: instructions that a program can check (Zhou et al. 2023), with lm-eval's checker.

The verdicts are the checker's own. Some instructions need nltk's sentence data, which is fetched on first use: without
it they are unchecked, and a prompt counts only if each of its instructions was checked, so that none fails for lack of
data.
"""

import contextlib
import functools
import io
import random
from collections.abc import Iterator, Sequence
from typing import Any

from instructlit.data.sources import Place
from instructlit.errors import UserError, not_installed
from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import local_or, read_rows
from instructlit.evaluation.measures import (
    PERCENT,
    Measure,
    Outcome,
    Study,
    answer_rows,
    first_rows,
    measured,
    noted,
)
from instructlit.evaluation.requests import Ask, Request
from instructlit.evaluation.task import Task
from instructlit.files import json_lines
from instructlit.rollout.time_limit import within

Followed = list[bool | None]
"""For one response: whether each instruction is followed, None if that cannot be checked."""

MODES = ("strict", "loose")
FETCH_SECONDS = 20.0


class IFEval(Task):
    """Share of prompts all of whose instructions are followed, and share of instructions, strict and loose.

    Args:
        data: rows with prompt, instruction_id_list and kwargs; by default google/IFEval on the Hub.
        limit: use only this many prompts, the first ones.
        max_new_tokens: most tokens in an answer.
        samples_shown: prompts whose answers the report shows.
    """

    def __init__(
        self,
        data: Place | None = None,
        limit: int | None = None,
        max_new_tokens: int = 1280,
        samples_shown: int = 8,
    ):
        self.data, self.limit = data, limit
        self.max_new_tokens, self.samples_shown = max_new_tokens, samples_shown
        self._rows: list[dict[str, Any]] = []

    def requests(self) -> Sequence[Request]:
        checker()
        source = local_or(self.data, "google/IFEval")
        self._rows = read_rows(source, "ifeval.data", "prompt", "instruction_id_list", "kwargs", limit=self.limit)
        return [Ask(row["prompt"], self.max_new_tokens) for row in self._rows]

    def measure(self, study: Study) -> Outcome:
        found = {model: self._verdicts(study.texts(model)) for model in study.models}
        outcome = Outcome()
        for mode in MODES:
            verdicts = {model: [None if row is None else row[mode] for row in rows] for model, rows in found.items()}
            outcome.measures += self._measures(study, mode, verdicts)

        def marks(model: str, i: int) -> list[str]:
            row = found[model][i]
            if row is None:
                return []
            words = {True: "kept", False: "broken", None: "unchecked"}
            names = self._rows[i]["instruction_id_list"]
            return [f"{words[ok]}: {name}" for name, ok in zip(names, row["strict"], strict=True)]

        rows = answer_rows(study, [row["prompt"] for row in self._rows], marks)
        outcome.samples = first_rows(rows, self.samples_shown)
        outcome.files = {
            f"ifeval_{model}.jsonl": "".join(
                json_lines(
                    {"prompt": row["prompt"], "instruction_id_list": row["instruction_id_list"], **verdict}
                    for row, verdict in zip(self._rows, verdicts, strict=True)
                    if verdict is not None
                )
            )
            for model, verdicts in found.items()
        }
        return outcome

    def _verdicts(self, texts: Sequence[str | None]) -> list[dict[str, Followed] | None]:
        return [
            None if text is None else {mode: followed(row, text, mode) for mode in MODES}
            for row, text in zip(self._rows, texts, strict=True)
        ]

    def _measures(self, study: Study, mode: str, verdicts: dict[str, list[Followed | None]]) -> list[Measure]:
        prompts, instructions, checked, unchecked = {}, {}, {}, {}
        for model, rows in verdicts.items():
            prompts[model] = [None if row is None else prompt_kept(row) for row in rows]
            instructions[model] = [None if row is None else float(sum(ok is True for ok in row)) for row in rows]
            checked[model] = [0.0 if row is None else float(sum(ok is not None for ok in row)) for row in rows]
            unchecked[model] = sum(ok is None for row in rows if row is not None for ok in row)
        what = {
            "strict": "as the response stands",
            "loose": "in the response, or in it without its first line, its last line or its asterisks",
        }[mode]
        by_prompt = Measure(
            f"ifeval/{mode}/prompts",
            f"IFEval, prompts ({mode})",
            f"Share of prompts all of whose verifiable instructions are followed, {what}.",
            PERCENT,
        )
        by_instruction = Measure(
            f"ifeval/{mode}/instructions",
            f"IFEval, instructions ({mode})",
            f"Share of verifiable instructions that are followed, {what}.",
            PERCENT,
        )
        measured(study, by_prompt, prompts, share=True)
        measured(study, by_instruction, instructions, weights=checked, share=True)
        by_instruction.by = self._kinds(verdicts)
        reason = "instructions unchecked, because nltk's sentence data (punkt_tab) is missing"
        return [noted(by_prompt, unchecked, reason), noted(by_instruction, unchecked, reason)]

    def _kinds(self, verdicts: dict[str, list[Followed | None]]) -> dict[str, dict[str, Any]]:
        """Share of instructions of each kind, such as `keywords`, that are followed."""
        found: dict[str, dict[str, Any]] = {}
        for model, rows in verdicts.items():
            kinds: dict[str, list[float]] = {}
            for row, verdict in zip(self._rows, rows, strict=True):
                for name, ok in zip(row["instruction_id_list"], verdict or [], strict=False):
                    if ok is not None:
                        kinds.setdefault(name.partition(":")[0], []).append(float(ok))
            for kind, values in kinds.items():
                found.setdefault(kind, {})[model] = intervals.share(values)
        return dict(sorted(found.items()))


def prompt_kept(row: Followed) -> float | None:
    """1 if all instructions are followed, 0 if one is broken, None if one is unchecked: counting such a prompt only if
    it fails would make the share too low."""
    return None if None in row else float(all(row))


def followed(row: dict[str, Any], response: str, mode: str) -> Followed:
    """Whether a response follows each instruction of a row, None if that cannot be checked.

    The instructions of a row are checked one at a time with lm-eval's own functions, whose only
    random choices are for instructions that leave a number open; these are seeded by the row.
    """
    found: Followed = []
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        found.append(_one(row, name, given, response, mode))
    return found


def _one(row: dict[str, Any], name: str, given: dict[str, Any], response: str, mode: str) -> bool | None:
    utils = checker()
    known = utils.instructions_registry.INSTRUCTION_DICT
    if name not in known:
        raise UserError(
            f"{name} is not an instruction that the checker knows",
            where="ifeval.data: instruction_id_list",
            expected=f"one of {', '.join(sorted(known))}",
        )
    inp = utils.InputExample(row.get("key", 0), [name], row["prompt"], [given])
    check = getattr(utils, f"test_instruction_following_{mode}")
    state = random.getstate()
    random.seed(row["prompt"])
    try:
        with _quiet(), _letters_as_asked(known):
            return bool(check(inp, response).follow_all_instructions)
    except LookupError as error:
        if isinstance(error, KeyError | IndexError):
            raise
        return None  # how nltk reports a missing resource
    finally:
        random.setstate(state)


@functools.cache
def checker() -> Any:
    """lm-eval's IFEval module. Its import fetches missing sentence data: here once, with a time limit.

    Raises:
        UserError: lm-eval or what its checker needs is not installed.
    """
    try:
        import lm_eval  # noqa: F401 - reported as missing before its parts are
        import nltk

        with _quiet():
            try:
                nltk.data.find("tokenizers/punkt_tab")
            except LookupError:
                _fetch(nltk)
            fetch, nltk.download = nltk.download, lambda *given, **options: False
            try:
                from lm_eval.tasks.ifeval import utils
            finally:
                nltk.download = fetch
    except ModuleNotFoundError as error:
        raise not_installed(error, "ifeval") from error
    return utils


def _fetch(nltk: Any) -> None:
    fault = UserError("no answer in time")
    with contextlib.suppress(UserError):
        within(FETCH_SECONDS, lambda: nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO()), fault)


@contextlib.contextmanager
def _letters_as_asked(known: dict[str, Any]) -> Iterator[None]:
    """lm-eval's checker of letter counts draws a random letter if the one asked for is a symbol, such as the # of row
    1122, and its verdict is then random. Here the symbol itself is counted.
    """
    name = "keywords:letter_frequency"
    before = known[name]

    class AsAsked(before):
        def build_description(self, *, letter: str | None = None, **options: Any) -> str:
            told = super().build_description(letter=letter, **options)
            if letter and len(letter.strip()) == 1:
                self._letter = letter.strip().lower()
            return told

    known[name] = AsAsked
    try:
        yield
    finally:
        known[name] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
