"""One pass over the rows of some sources that keeps integers only, and the dataset that reads them again when asked."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from instructlit.data.formats import Kind, Record, read_records
from instructlit.data.hygiene import prefix_hash
from instructlit.data.readers import Rows
from instructlit.data.report import SplitReport
from instructlit.data.splits import hash64, prompt_key
from instructlit.errors import UserError
from instructlit.types import Text


@dataclass(frozen=True)
class Measure:
    """What one record comes to in tokens: its length, whether it was cut, and why it has to go, if it has."""

    tokens: int
    truncated: bool = False
    dropped: str | None = None


@dataclass
class Scan:
    """The records of some files as parallel arrays, one entry a record; no text."""

    files: list[Rows]
    kind: Kind
    file: np.ndarray  # int32, index into files
    row: np.ndarray  # int64, row of the file
    part: np.ndarray  # int32, record of the row (message trees have several)
    prompt: np.ndarray  # uint64, hash of the prompt
    prefix: np.ndarray  # uint64, hash of the prompt's beginning; zero where not asked for
    user: np.ndarray  # uint64, hash of the user; zero where the row names none
    weight: np.ndarray  # float64, how often the record comes in an epoch, beside the weight of its source
    tokens: np.ndarray  # int32
    truncated: np.ndarray  # bool
    kept: np.ndarray  # bool
    reasons: list[str | None] = field(repr=False)  # one a record; shared strings
    formats: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Marks the kept ones among `rows` (bool) as dropped for `reason`."""
        for i in np.flatnonzero(rows & self.kept):
            self.reasons[i] = reason
        self.kept &= ~rows

    def report(self, name: str) -> SplitReport:
        """The counts of this scan."""
        report = SplitReport(
            name, self.kind, rows=sum(map(len, self.files)), records=len(self), kept=int(self.kept.sum())
        )
        report.truncated = int((self.truncated & self.kept).sum())
        report.tokens = int(self.tokens[self.kept].sum())
        report.formats.update(self.formats)
        report.dropped.update(reason for reason in self.reasons if reason)
        return report

    def groups(self, chosen: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
        """The kept and `chosen` (bool) records that share a source and a weight of their own, and what they weigh."""
        weights, indices = [], []
        file_source = np.array([id(rows.source) for rows in self.files])
        for source in dict.fromkeys(file_source.tolist()):
            mine = np.isin(self.file, np.flatnonzero(file_source == source))
            whole = next(rows.source.weight for rows in self.files if id(rows.source) == source)
            for own in np.unique(self.weight[mine]).tolist() or [1.0]:
                indices.append(np.flatnonzero(mine & (self.weight == own) & self.kept & chosen))
                weights.append(whole * own)
        return indices, weights


def records_of(files: Sequence[Rows], kind: Kind) -> Iterator[tuple[int, int, int, str, Record]]:
    """Every record in order: file, row, part, form and the record."""
    for f, rows in enumerate(files):
        for i in range(len(rows)):
            form, records = read_records(rows[i], rows.where(i), kind, rows.source.format)
            for part, record in enumerate(records):
                yield f, i, part, form, record


def scan(files: Sequence[Rows], kind: Kind, measure: Callable[[Record], Measure], prefix_characters: int = 0) -> Scan:
    """Reads and checks every row once.

    Raises:
        UserError: the first row that is wrong, or that the chat template refuses, by file and line.
    """
    columns = {
        name: array(code)
        for name, code in (("file", "i"), ("row", "q"), ("part", "i"), ("weight", "d"), ("tokens", "i"))
    }
    hashes = {name: array("Q") for name in ("prompt", "prefix", "user")}
    truncated, reasons, formats = array("b"), [], {}
    for f, row, part, form, record in records_of(files, kind):
        try:
            measured = measure(record)
        except UserError as error:
            where = f"{files[f].where(row)}: {error.where or 'prompt'}"
            raise UserError(error.what, where=where, expected=error.expected, fix=error.fix) from error
        weight = getattr(record, "weight", 1.0)
        for name, value in zip(columns, (f, row, part, weight, measured.tokens), strict=True):
            columns[name].append(value)
        prompt, user = ("", None) if isinstance(record, Text) else (record.prompt, record.user)
        hashes["prompt"].append(hash64(record.text if isinstance(record, Text) else prompt_key(prompt)))
        hashes["prefix"].append(prefix_hash(prompt, prefix_characters) if prefix_characters else 0)
        hashes["user"].append(hash64(user) | 1 if user else 0)
        truncated.append(measured.truncated)
        reasons.append(measured.dropped)
        formats[form] = formats.get(form, 0) + 1
    return Scan(
        list(files),
        kind,
        **{name: np.array(values) for name, values in columns.items()},
        **{name: np.array(values, dtype=np.uint64) for name, values in hashes.items()},
        truncated=np.array(truncated, dtype=bool),
        kept=np.array([reason is None for reason in reasons], dtype=bool),
        reasons=reasons,
        formats=formats,
    )


class RecordDataset(Dataset):
    """The records of a scan, read from their files and encoded when asked for."""

    def __init__(self, scanned: Scan, encode: Callable[[Any], Any]):
        self.scanned, self.encode = scanned, encode

    def __len__(self) -> int:
        return len(self.scanned)

    @property
    def identity(self) -> bytes:
        """The prompts of all records, as bytes that are compared to tell whether the data has changed."""
        return self.scanned.prompt.tobytes()

    def where(self, index: int) -> str:
        """File and line of a record."""
        return self.scanned.files[self.scanned.file[index]].where(int(self.scanned.row[index]))

    def record(self, index: int) -> Record:
        """The record as it stands in its file."""
        scanned = self.scanned
        rows, row = scanned.files[scanned.file[index]], int(scanned.row[index])
        _, records = read_records(rows[row], rows.where(row), scanned.kind, rows.source.format)
        return records[scanned.part[index]]

    def __getitem__(self, index: int) -> Any:
        return self.encode(self.record(index))
