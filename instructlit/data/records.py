"""One pass over the rows of some sources, whose ids and counts are kept on disk, and the dataset that reads them."""

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from instructlit.data.cache import kept, key_of
from instructlit.data.formats import Kind, Record, read_records
from instructlit.data.hygiene import prefix_hash
from instructlit.data.progress import progress
from instructlit.data.report import SplitReport
from instructlit.data.rows import Rows
from instructlit.data.splits import hash64, prompt_key
from instructlit.data.store import Store, Writer
from instructlit.data.tokenization import Encoded
from instructlit.errors import UserError
from instructlit.types import Prompt, Text

RECORD = np.dtype(
    [
        ("file", "<i4"),  # index into the files
        ("row", "<i8"),  # row of the file
        ("part", "<i4"),  # record of the row (message trees have several)
        ("prompt", "<u8"),  # hash of the prompt
        ("prefix", "<u8"),  # hash of the prompt's beginning; zero if not asked for
        ("user", "<u8"),  # hash of the user; zero if the row names none
        ("weight", "<f8"),  # how often the record occurs in an epoch, apart from its source's weight
        ("tokens", "<i4"),
        ("truncated", "?"),
        ("personal", "?"),  # whether it seems to contain personal data; False if not asked for
        ("reason", "<i2"),  # why it is dropped: index into the facts' `reasons`, 0 if it is kept
        ("sequences", "<i8"),  # where its sequences end in their table
    ]
)
SEQUENCE = np.dtype([("end", "<i8"), ("start", "<i4"), ("truncated", "?")])  # end of its ids, first response token
ID = np.dtype("<u4")
_pack_record = struct.Struct("<iqiQQQdi??hq").pack
_pack_sequence = struct.Struct("<qi?").pack


@dataclass(frozen=True)
class Measure:
    """The measure of one record in tokens: its length, whether it was truncated, and why it is dropped, if it is."""

    tokens: int
    truncated: bool = False
    dropped: str | None = None
    personal: bool = False


@dataclass(frozen=True)
class Coder:
    """How the records of one kind become ids.

    Args:
        kind: the kind of the records.
        tokenise: gives the sequences of a record.
        measure: gives the measure of a record and its sequences.
        prefix_characters: length of the prompt's prefix that is hashed; 0 hashes none.
        how: everything that the sequences and measures depend on besides the record, as JSON values; None if that is
            unknown, and every run makes them again.
    """

    kind: Kind
    tokenise: Callable[[Any], list[Encoded]]
    measure: Callable[[Any, list[Encoded]], Measure]
    prefix_characters: int = 0
    how: Any = None


@dataclass
class Scan:
    """The records of some files, and which of them are kept."""

    files: list[Rows]
    kind: Kind
    store: Store
    kept: np.ndarray  # (records,) bool
    reason: np.ndarray  # (records,) int16, index into `reasons`
    reasons: list[str] = field(repr=False)
    formats: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def records(self) -> np.ndarray:
        """(records,) of `RECORD`."""
        return self.store.table("records", RECORD)

    @property
    def prompt(self) -> np.ndarray:
        """(records,) uint64, hash of the prompt."""
        return self.records["prompt"]

    @property
    def user(self) -> np.ndarray:
        """(records,) uint64, hash of the user; zero if the row names none."""
        return self.records["user"]

    @property
    def tokens(self) -> np.ndarray:
        """(records,) int32."""
        return self.records["tokens"]

    def sequences(self, index: int) -> list[Encoded]:
        """The ids of a record."""
        table, ids = self.store.table("sequences", SEQUENCE), self.store.table("ids", ID)
        first = int(self.records["sequences"][index - 1]) if index else 0
        last = int(self.records["sequences"][index])
        begin, found = int(table["end"][first - 1]) if first else 0, []
        for end, start, truncated in table[first:last].tolist():
            found.append(Encoded(ids[begin:end].tolist(), start, truncated))
            begin = end
        return found

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Marks the kept ones among `rows` (bool) as dropped for `reason`."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.reason[rows & self.kept] = self.reasons.index(reason)
        self.kept &= ~rows

    def report(self, name: str) -> SplitReport:
        """The counts of this scan."""
        report = SplitReport(
            name, self.kind, rows=sum(map(len, self.files)), records=len(self), kept=int(self.kept.sum())
        )
        report.truncated = int((self.records["truncated"] & self.kept).sum())
        report.tokens = int(self.tokens[self.kept].sum(dtype=np.int64))
        report.formats.update(self.formats)
        counts = np.bincount(self.reason, minlength=len(self.reasons))
        report.dropped = Counter({why: int(n) for why, n in zip(self.reasons[1:], counts[1:], strict=True) if n})
        return report

    def groups(self, chosen: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
        """The kept and `chosen` (bool) records, grouped by source and own weight, and the weight of each group."""
        weights, indices = [], []
        file, weight = self.records["file"], self.records["weight"]
        file_source = np.array([id(rows.source) for rows in self.files])
        for source in dict.fromkeys(file_source.tolist()):
            mine = np.isin(file, np.flatnonzero(file_source == source))
            whole = next(rows.source.weight for rows in self.files if id(rows.source) == source)
            for own in np.unique(weight[mine]).tolist() or [1.0]:
                indices.append(np.flatnonzero(mine & (weight == own) & self.kept & chosen))
                weights.append(whole * own)
        return indices, weights


def records_of(files: Sequence[Rows], kind: Kind) -> Iterator[tuple[int, int, int, str, Record]]:
    """Every record in order: file, row, part, form and the record."""
    for f, rows in enumerate(files):
        for i in range(len(rows)):
            form, records = read_records(rows[i], rows.where(i), kind, rows.source.format)
            for part, record in enumerate(records):
                yield f, i, part, form, record


def prompts_of(files: Sequence[Rows]) -> Iterator[tuple[str, Prompt]]:
    """Every prompt in order, with its location."""
    for file, row, _, _, record in records_of(files, "prompt"):
        assert isinstance(record, Prompt)
        yield files[file].where(row), record


def records_with_progress(files: Sequence[Rows], kind: Kind, what: str) -> Iterator[tuple[int, int, int, str, Record]]:
    """As `records_of`, with progress messages."""
    before = np.cumsum([0, *map(len, files)])
    with progress(what, int(before[-1]), "rows") as show:
        for found in records_of(files, kind):
            yield found
            show(int(before[found[0]]) + found[1] + 1)


def scan(files: Sequence[Rows], coder: Coder, what: str) -> Scan:
    """Reads, checks and tokenises every row once, or reads the result of an earlier run from the cache.

    Args:
        files: the files.
        coder: how their records become ids.
        what: the name of the data, for messages.

    Raises:
        UserError: for the first row that is invalid or that the chat template rejects, with file and line.
    """
    how = None if coder.how is None else [coder.kind, coder.prefix_characters, coder.how]
    store = kept(key_of(files, how), lambda writer: _fill(writer, files, coder, what), what)
    reason = np.array(store.table("records", RECORD)["reason"])
    return Scan(list(files), coder.kind, store, reason == 0, reason, list(store.facts["reasons"]), store.facts["forms"])


@contextmanager
def naming(rows: Rows, index: int) -> Iterator[None]:
    """Adds the file and line of the row to an error about a record, such as a chat template's."""
    try:
        yield
    except UserError as error:
        raise error.at(f"{rows.where(index)}: {error.where or 'prompt'}") from error


def _fill(writer: Writer, files: Sequence[Rows], coder: Coder, what: str) -> dict[str, Any]:
    """Writes records, sequences and ids; returns the reasons for dropping and the number of records by form."""
    records, sequences, ids = (writer.table(name) for name in ("records", "sequences", "ids"))
    reasons, forms, count, end = {"": 0}, Counter[str](), 0, 0
    for f, row, part, form, record in records_with_progress(files, coder.kind, f"{what}: reading and tokenising"):
        with naming(files[f], row):
            encoded = coder.tokenise(record)
            measured = coder.measure(record, encoded)
        for one in encoded:
            end += len(one.ids)
            ids.add(array("I", one.ids).tobytes())
            sequences.add(_pack_sequence(end, one.start, one.truncated))
        count += len(encoded)
        forms[form] += 1
        prompt, user = ("", None) if isinstance(record, Text) else (record.prompt, record.user)
        records.add(
            _pack_record(
                f,
                row,
                part,
                hash64(record.text if isinstance(record, Text) else prompt_key(prompt)),
                prefix_hash(prompt, coder.prefix_characters) if coder.prefix_characters else 0,
                hash64(user) | 1 if user else 0,
                getattr(record, "weight", 1.0),
                measured.tokens,
                measured.truncated,
                measured.personal,
                reasons.setdefault(measured.dropped or "", len(reasons)),
                count,
            )
        )
    return {"reasons": list(reasons), "forms": dict(forms)}


class RecordDataset(Dataset):
    """The records of a scan, read from their files, with the ids in the store.

    Args:
        scanned: the scan.
        encoded: turns a record and its sequences into what a batch is collated from.
    """

    def __init__(self, scanned: Scan, encoded: Callable[[Any, list[Encoded]], Any]):
        self.scanned, self.encoded = scanned, encoded

    def __len__(self) -> int:
        return len(self.scanned)

    @property
    def identity(self) -> bytes:
        """The prompts of all records, as bytes, to detect changes of the data."""
        return self.scanned.prompt.tobytes()

    def where(self, index: int) -> str:
        """File and line of a record."""
        found = self.scanned.records[index]
        return self.scanned.files[found["file"]].where(int(found["row"]))

    def record(self, index: int) -> Record:
        """The record as in its file."""
        scanned, found = self.scanned, self.scanned.records[index]
        rows, row = scanned.files[found["file"]], int(found["row"])
        _, records = read_records(rows[row], rows.where(row), scanned.kind, rows.source.format)
        return records[found["part"]]

    def __getitem__(self, index: int) -> Any:
        return self.encoded(self.record(index), self.scanned.sequences(index))
