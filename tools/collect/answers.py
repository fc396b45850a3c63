"""Distinct answers to prompts from several policies, one policy in memory at a time, each batch saved when it is done.

The random numbers of a batch depend only on the seed and its place in the plan, and the plan on the options and the
earlier answers: a run that was killed and started again gives the same answers as an uninterrupted one.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from instructlit.data.collate import EncodedPrompt
from instructlit.data.progress import progress
from instructlit.dtypes import AutoDtype
from instructlit.evaluation.language_model import usable_device
from instructlit.rollout.engine import Sampling
from instructlit.tools.answering import Answerer, load_answerer
from instructlit.tools.journal import Journal
from instructlit.tools.scoring import Scorer
from instructlit.tools.sources import source_name
from instructlit.types import Prompt


@dataclass(frozen=True)
class Source:
    """A policy at a temperature."""

    folder: str
    temperature: float

    @property
    def name(self) -> str:
        """Its name in the lineage."""
        return source_name(self.folder, self.temperature)


@dataclass(frozen=True)
class Answer:
    """One completion and where it came from."""

    text: str
    ended: bool
    policy: str


@dataclass
class Wanted:
    """The answers that a prompt has, and those it still needs."""

    sources: list[int]  # a source for each answer still needed
    answers: list[Answer] = field(default_factory=list)
    repeated: int = 0


@dataclass(frozen=True)
class Drawing:
    """How answers are sampled."""

    sources: Sequence[Source]
    least: int
    most: int
    max_new_tokens: int
    batch_size: int
    attempts: int
    distinct: bool
    seed: int
    template: str
    dtype: AutoDtype
    device: str


def draw_answers(prompts: Sequence[Prompt], how: Drawing, journal: Journal) -> list[Wanted]:
    """`least` to `most` answers to each prompt, the policies in equal shares.

    An answer that a prompt already has is sampled again from the same policy, at most `attempts` times in total.

    Args:
        prompts: the prompts; each leaves every policy room for an answer.
        how: the options.
        journal: stores every batch.
    """
    rows = [Wanted(_plan(how, row)) for row in range(len(prompts))]
    for attempt in range(how.attempts):
        for number, source in enumerate(how.sources):
            jobs = [row for row, wanted in enumerate(rows) for one in wanted.sources if one == number]
            if jobs:
                _draw(source, number, attempt, jobs, rows, prompts, how, journal)
        if not any(wanted.sources for wanted in rows):
            break
    return rows


def _plan(how: Drawing, row: int) -> list[int]:
    """The source of each of a prompt's answers: every source once before any is used twice, in random order."""
    rng = random.Random(f"collect {how.seed} {row}")
    count, chosen = rng.randint(how.least, how.most), []
    while len(chosen) < count:
        chosen += rng.sample(range(len(how.sources)), len(how.sources))
    return chosen[:count]


def _draw(
    source: Source,
    number: int,
    attempt: int,
    jobs: list[int],
    rows: list[Wanted],
    prompts: Sequence[Prompt],
    how: Drawing,
    journal: Journal,
) -> None:
    """Samples one answer for every job, and adds it to its prompt if it is new."""
    policy: Answerer | None = None
    sampling = Sampling(how.max_new_tokens, source.temperature)
    with progress(source.name, len(jobs), "answers") as show:
        for batch, part in enumerate(_batches(jobs, prompts, how.batch_size)):
            key = f"draw {attempt} {number} {batch}"
            if key not in journal:
                policy = policy or load_answerer(
                    source.folder, template=how.template, dtype=how.dtype, device=how.device
                )
                ids = [EncodedPrompt(policy.encoder.prompt(prompts[row].prompt), prompts[row]) for row in part]
                journal.put(key, policy.answers(ids, sampling, f"{how.seed} {key}"))
            for row, (text, ended) in zip(part, journal[key], strict=True):
                _give(rows[row], Answer(text, ended, source.name), number, how.distinct)
            show(batch * how.batch_size + len(part))


def _batches(jobs: Sequence[int], prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    """Batches of prompts of similar length, which saves padding."""
    order = sorted(jobs, key=lambda row: (len(str(prompts[row].prompt)), row))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _give(wanted: Wanted, answer: Answer, source: int, distinct: bool) -> None:
    if distinct and any(answer.text == had.text for had in wanted.answers):
        wanted.repeated += 1
        return
    wanted.answers.append(answer)
    wanted.sources.remove(source)


def score_answers(
    model: str, prompts: Sequence[Prompt], rows: Sequence[Wanted], how: Drawing, journal: Journal
) -> list[list[float]]:
    """A reward model's scores of every prompt's answers, each batch of prompts saved when it is done."""
    scorer: Scorer | None = None
    found: list[list[float]] = []
    size = max(1, how.batch_size // how.most)
    for start in range(0, len(rows), size):
        key = f"score {model} {start}"
        part = range(start, min(start + size, len(rows)))
        if key not in journal:
            if scorer is None:
                scorer = Scorer(model, usable_device(how.device), how.batch_size, how.template)
            flat = [(prompts[row].prompt, one.text, one.ended) for row in part for one in rows[row].answers]
            journal.put(key, scorer.scores(flat))
        scores = iter(journal[key])
        found += [[next(scores) for _ in rows[row].answers] for row in part]
    return found
