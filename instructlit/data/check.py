"""What training would see, counted before any GPU is used: the facts behind `instructlit data check`.

Rows are read one at a time; only counts and 24 bytes per row (hashes) are kept. An invalid row is counted and reported,
and reading continues.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from instructlit.data.chat import adds_bos, plain_text
from instructlit.data.check_report import CheckReport, Lengths, Pairs, Problem, SourceReport
from instructlit.data.comparisons import ComparisonData, encoded_completions
from instructlit.data.conversations import LATER_TURN
from instructlit.data.datamodule import DataModule
from instructlit.data.formats import Kind, Record, detect_kind, read_records
from instructlit.data.hygiene import personal_data, prefix_hash
from instructlit.data.progress import progress
from instructlit.data.readers import open_source
from instructlit.data.records import Measure, naming
from instructlit.data.rows import Rows
from instructlit.data.sources import Source, Sources, as_sources
from instructlit.data.splits import hash64, prompt_key
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.errors import UserError, counted
from instructlit.types import Comparison, Demonstration, Text

_TOLD = 5  # invalid rows that are shown in full
_PREFIX = 100  # characters of a common prefix that make prompts near duplicates


@dataclass(frozen=True)
class Target:
    """One option's files and how training would measure their records."""

    name: str
    kind: Kind
    sources: Sources
    measure: Callable[[Any, list[Encoded]], Measure] | None = None


def targets_of(data: DataModule) -> Iterator[Target]:
    """The options of a datamodule that name files."""
    o = data.options
    for name, sources in (("train", o.train), ("validation", o.validation), ("test", o.test)):
        if sources:
            yield Target(name, data.kind, sources, data.measure if data.kind != "text" else None)
    if isinstance(data, ComparisonData) and data.demonstrations:
        yield Target("demonstrations", "demonstration", data.demonstrations, data.measure_demonstration)
    if pretraining := getattr(data, "pretraining", None):
        yield Target("pretraining", "text", pretraining)


def check_data(targets: Sequence[Target], data: DataModule | None = None) -> CheckReport:
    """Reads every row of `targets` and reports what training would do with it.

    Args:
        targets: options and their files.
        data: the datamodule they belong to, with its tokenizer loaded; None to check only the files.
    """
    report = CheckReport()
    encoder, prefix = None, _PREFIX
    if data is not None:
        report.tokenizer = _tokenizer_facts(data, report.problems)
        encoder = Encoder(data.tokenizer, data.options.template)
        prefix = getattr(data, "duplicate_prefix", 0) or prefix
    for target in targets:
        try:
            files = [rows for source in as_sources(target.sources) for rows in open_source(source, target.name)]
        except UserError as error:
            report.problems.append(Problem("fatal", target.name, str(error)))
            continue
        source = _Counter(target, files, encoder, data.max_length if data else None, prefix).count()
        report.sources.append(source)
        report.problems += _problems(source, data)
    _shared(report)
    return report


class _Counter:
    """Goes through the records of one option."""

    def __init__(self, target: Target, files: list[Rows], encoder: Encoder | None, max_length: int | None, prefix: int):
        self.target, self.files, self.encoder, self.max_length, self.prefix = target, files, encoder, max_length, prefix
        unit = "tokens" if encoder else "characters"
        self.report = SourceReport(target.name, target.kind, [rows.path for rows in files], unit)
        self.report.pairs = Pairs() if target.kind == "comparison" else None
        self.lengths: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter(), "whole": Counter()}
        self.records, self.prompts, self.prefixes = (array("Q") for _ in range(3))  # a hash of each
        self.special: re.Pattern[str] | None = None
        if encoder is not None:
            tokenizer = encoder.renderer.tokenizer
            added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
            self.special = re.compile("|".join(map(re.escape, [tokenizer.eos_token, *added])))

    def count(self) -> SourceReport:
        report, total = self.report, sum(map(len, self.files))
        with progress(f"{report.name}: checking", total, "rows") as show:
            for rows in self.files:
                for i in range(len(rows)):
                    self._row(rows, i)
                    show(report.rows)
        report.prompts = distinct(self.prompts)
        report.duplicates = len(self.records) - len(distinct(self.records))
        report.repeated_prompts = len(self.prompts) - len(report.prompts)
        # the prefix is a function of the prompt: every prefix has one prompt that is not a near duplicate
        report.near_duplicates = len(report.prompts) - len(distinct(self.prefixes))
        report.prompt_lengths = Lengths.of(self.lengths["prompt"])
        report.response_lengths = Lengths.of(self.lengths["response"])
        report.lengths = Lengths.of(self.lengths["whole"])
        return report

    def _row(self, rows: Rows, index: int) -> None:
        report = self.report
        report.rows += 1
        try:
            form, records = read_records(rows[index], rows.where(index), self.target.kind, rows.source.format)
            with naming(rows, index):
                for record in records:
                    self._record(record)
            report.formats[form] += len(records)
        except UserError as error:
            report.wrong += 1
            if len(report.wrong_rows) < _TOLD:
                report.wrong_rows.append(str(error))

    def _record(self, record: Record) -> None:
        report, sequences = self.report, self._sequences(record)
        cut = [sequence.cut(self.max_length) for sequence in sequences]
        measured = self.target.measure(record, cut) if self.target.measure else Measure(0)
        report.records += 1
        report.truncated += measured.truncated and not measured.dropped
        if measured.dropped:
            report.dropped[measured.dropped] += 1
        if isinstance(record, Text):
            if not record.text.strip():
                report.dropped["blank documents"] += 1
                return
            self.records.append(hash64(record.text))
            document: Sequence[Any] = self.encoder.document(record.text) if self.encoder else record.text
            self.lengths["whole"][len(document)] += 1
            report.unknown += self._unknown(document)
            report.special_inside += self._special("", [record.text])
            return
        prompt = prompt_key(record.prompt)
        self.prompts.append(hash64(prompt))
        self.prefixes.append(prefix_hash(record.prompt, self.prefix))
        report.personal_data += personal_data(prompt) is not None
        report.conversations += isinstance(record.prompt, list)
        if isinstance(record, Demonstration):
            self.records.append(hash64(f"{prompt}\0{record.completion}"))
            report.special_inside += self._special(prompt, [record.completion])
            self._example(record, record.completion, measured, sequences[:1])
        elif isinstance(record, Comparison):
            self.records.append(hash64("\0".join([prompt, record.labeler or "", *record.completions])))
            report.special_inside += self._special(prompt, record.completions)
            assert report.pairs is not None
            responses = [
                self._example(record, one, measured, sequences[k : k + 1]) for k, one in enumerate(record.completions)
            ]
            report.pairs.add(record, responses)
        else:
            self.records.append(hash64(prompt))
            report.special_inside += self._special(prompt, [])
            self.lengths["prompt"][len(sequences[0].ids) if sequences else len(plain_text(record.prompt))] += 1

    def _sequences(self, record: Record) -> list[Encoded]:
        """Ids of a record, not truncated; none without a tokenizer."""
        if self.encoder is None or isinstance(record, Text):
            return []
        if isinstance(record, Demonstration):
            return [self.encoder.example(record.prompt, record.completion)]
        if isinstance(record, Comparison):
            return encoded_completions(self.encoder, record)
        return [Encoded(self.encoder.prompt(record.prompt), 0)]

    def _special(self, prompt: str, learned: Sequence[str]) -> bool:
        """Whether a special token is spelled out in a prompt or a completion (which may end with EOS)."""
        if self.special is None or self.encoder is None:
            return False
        ends = self.encoder.renderer.tokenizer.eos_token
        return any(map(self.special.search, [prompt, *(text.removesuffix(ends) for text in learned)]))

    def _unknown(self, ids: Sequence[Any]) -> bool:
        """Whether the unknown token is among some ids; some tokenizers use the same token as EOS."""
        if self.encoder is None:
            return False
        unknown = self.encoder.renderer.tokenizer.unk_token_id
        return unknown is not None and unknown != self.encoder.eos and unknown in ids

    def _example(
        self, record: Demonstration | Comparison, completion: str, measured: Measure, sequence: list[Encoded]
    ) -> int:
        """Counts one sequence (given if there is a tokenizer) and returns the length of its response."""
        report = self.report
        report.later_turns += LATER_TURN in completion
        report.leading_space += completion[:1].isspace() and not completion.isspace()
        if self.encoder is None:
            prompt, response = len(plain_text(record.prompt)), len(completion)
        else:
            (encoded,) = sequence
            prompt, response = encoded.start, len(encoded.ids) - encoded.start
            too_long = self.max_length is not None and len(encoded.ids) > self.max_length
            report.missing_eos += too_long and not measured.dropped
            report.unknown += self._unknown(encoded.ids[encoded.start :])
            report.eos_inside += self.encoder.eos in encoded.ids[encoded.start : -1]
            report.template_mismatch += self.encoder.renderer.differs(record.prompt, completion)
            report.merged_boundaries += not self.encoder.prompt_is_prefix(record.prompt, encoded)
        for name, length in (("prompt", prompt), ("response", response), ("whole", prompt + response)):
            self.lengths[name][length] += 1
        return response


def _tokenizer_facts(data: DataModule, problems: list[Problem]) -> dict[str, Any]:
    tokenizer, renderer = data.tokenizer, data.encoder.renderer
    facts = {
        "name": data.options.tokenizer,
        "vocabulary": len(tokenizer),
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "pad_is_eos": tokenizer.pad_token_id == tokenizer.eos_token_id,
        "chat_template": renderer.uses_template,
        "turn_ends_with_eos": renderer.ends_with_eos,
        "template_opens_turn": not renderer.put_behind_prompts,
        "bos_lacking": renderer.uses_template
        and adds_bos(tokenizer)
        and data.encoder.prompt("a")[:1] != [data.encoder.bos],
    }

    def say(level: str, what: str) -> None:
        problems.append(Problem(level, "tokenizer", what))

    if facts["pad_is_eos"]:
        say("note", "pad is EOS; masks are made from lengths here, but other programs may not train on such an EOS")
    if not facts["turn_ends_with_eos"]:
        say("warning", f"the chat template does not end a turn with EOS ({tokenizer.eos_token}): EOS is added there")
    if not facts["template_opens_turn"]:
        behind = f"writes {renderer.put_behind_prompts!r} before an answer but not as a generation prompt"
        say(
            "warning",
            f"the chat template {behind}: it is added to every prompt here, but other programs may not do this",
        )
    if facts["bos_lacking"]:
        say(
            "warning",
            f"the chat template writes no BOS ({tokenizer.bos_token}), which the tokenizer adds to plain text",
        )
    if tokenizer.chat_template is not None and not renderer.uses_template and data.kind != "text":  # has no template
        say("warning", "the tokenizer has a chat template, which `template: plain` ignores")
    return facts


def _problems(source: SourceReport, data: DataModule | None) -> Iterator[Problem]:
    """The problems that the counts of one option show."""

    def say(level: str, what: str) -> Problem:
        return Problem(level, source.name, what)

    if source.wrong:
        yield say("fatal", f"{counted(source.wrong, 'invalid row')}; the first: {source.wrong_rows[0]}")
    if source.records and not source.kept:
        yield say("fatal", "nothing is left to train on")
    elif data is not None and source.records:
        hygiene = sum(source.dropped[reason] for reason in data.hygiene_reasons)
        lost = source.dropped.total() - hygiene
        if lost > data.options.max_dropped_fraction * source.records:
            limit = f"max_dropped_fraction ({data.options.max_dropped_fraction:.0%})"
            yield say("fatal", f"{lost:,} of {source.records:,} would be dropped, more than {limit}")
    for count, noun, what in (
        (source.missing_eos, "sequence", "truncated at max_length, without EOS"),
        (source.eos_inside, "completion", "with an EOS before the end"),
        (
            source.later_turns,
            "completion",
            f"with a later user turn ({LATER_TURN!r}): it is learned as the assistant's text",
        ),
        (
            source.special_inside,
            "record",
            "with a special token spelled out in the text: it is tokenised as that token",
        ),
        (
            source.unknown,
            "sequence",
            "with text that the tokenizer has no token for: its unknown token is learned instead",
        ),
        (source.template_mismatch, "example", "unlike the chat template's rendering of the finished conversation"),
        (
            source.merged_boundaries,
            "prompt",
            "sharing a token with the completion, or split otherwise alone: sampling starts from different ids",
        ),
        (
            source.leading_space,
            "completion",
            "beginning with white space: sampled answers are kept without it, so judged as other tokens than in PPO",
        ),
        (source.duplicates, "record", "occurring more than once"),
        (source.personal_data if source.kind == "prompt" else 0, "prompt", "with possible personal data"),
    ):
        if count:
            yield say("warning", f"{counted(count, noun)} {what}")
    if source.conversations and data is not None and not data.encoder.renderer.uses_template:
        prompts = counted(source.conversations, "prompt")
        yield say("note", f"{prompts} made of messages, but there is no chat template: the plain layout is used")
    if source.pairs and source.pairs.equal_but_ranked:
        yield say("note", f"{counted(source.pairs.equal_but_ranked, 'pair')} of identical texts with different ranks")
    if source.pairs and source.pairs.length_accuracy and source.pairs.length_accuracy[1] > 0.6:
        share, low, high = source.pairs.length_accuracy
        yield say("warning", f'"the longer wins" is right for {share:.1%} of the pairs ({low:.1%} to {high:.1%})')


def _shared(report: CheckReport) -> None:
    """Prompts shared by two of training, validation and test."""
    named = [source for source in report.sources if source.name in ("train", "validation", "test")]
    for first, second in combinations(named, 2):
        if shared := len(np.intersect1d(first.prompts, second.prompts, assume_unique=True)):
            report.shared_prompts[f"{first.name}, {second.name}"] = shared
            what = f"{counted(shared, 'prompt')} also in {second.name}"
            report.problems.append(Problem("warning", first.name, what))


def guess_kind(path: str) -> Kind:
    """The most likely kind of record in a file, judged by its first row."""
    rows = open_source(Source(path), "files")[0]
    return detect_kind(rows[0])


def distinct(hashes: "array[int]") -> np.ndarray:
    """The distinct hashes, (n,) uint64, sorted; `hashes` is sorted in place, as there may be millions."""
    if not hashes:
        return np.zeros(0, dtype=np.uint64)
    values = np.frombuffer(hashes, dtype=np.uint64)
    values.sort()
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values if first.all() else values[first]
