"""Documents as one long sequence of ids on disk, read in blocks of equal length or document by document."""

import struct
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from instructlit.data.cache import kept, key_of
from instructlit.data.records import ID, records_with_progress
from instructlit.data.report import SplitReport
from instructlit.data.rows import Rows
from instructlit.data.splits import hash64, held_out
from instructlit.data.store import Store, Writer
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.types import Text

_HELD = "held"


DOCUMENT = np.dtype([("end", "<i8"), ("file", "<i4"), ("row", "<i8")])  # end of its ids, and its file and row
_pack_document = struct.Struct("<qiq").pack


class TokenFile:
    """Ids of many documents, each with its EOS, one after the other in a store (uint32, memory-mapped).

    Args:
        store: filled by `tokenise`.
        name: name of the part in the store.
        origins: the files that the documents come from.
    """

    def __init__(self, store: Store, name: str, origins: Sequence[Rows]):
        self._store, self._name, self._origins = store, name, origins
        self.blank = int(store.facts["blank"][name])
        self.tokens = int(self.ends[-1]) if self.documents else 0

    @property
    def ends(self) -> np.ndarray:
        """(documents,) int64, where each document ends."""
        return self._documents["end"]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self._documents)

    def read(self, start: int, end: int) -> list[int]:
        """Ids from `start` up to `end`."""
        return self._store.table(f"{self._name}-ids", ID)[start:end].tolist()

    def where(self, position: int) -> str:
        """File and line of the document that the id at `position` belongs to."""
        found = self._documents[np.searchsorted(self.ends, position, side="right")]
        return self._origins[found["file"]].where(int(found["row"]))

    @property
    def _documents(self) -> np.ndarray:
        return self._store.table(f"{self._name}-documents", DOCUMENT)


class _Part:
    """Writes the documents of one part into a store."""

    def __init__(self, writer: Writer, name: str):
        self._ids, self._documents = writer.table(f"{name}-ids"), writer.table(f"{name}-documents")
        self._end = self.blank = 0

    def add(self, ids: list[int], file: int, row: int) -> None:
        self._end += len(ids)
        self._ids.add(array("I", ids).tobytes())
        self._documents.add(_pack_document(self._end, file, row))


class TextRows(Dataset):
    """Spans of some token files, each a row in which every token but the first is a target.

    Args:
        files: the token files.
        counts: number of rows of each.
    """

    unit: str  # name of a row in a report
    left_out: str  # name of the tokens that are in no row
    tokens: int  # in all rows
    lengths: np.ndarray | None = None  # of each row, if they differ

    def __init__(self, files: Sequence[TokenFile], counts: Sequence[int]):
        self.files = list(files)
        self._edges = np.cumsum([0, *counts])

    def span(self, file: int, index: int) -> tuple[int, int]:
        """Start and end of row `index`, which is in that file."""
        raise NotImplementedError

    @property
    def identity(self) -> bytes:
        """Identifies the text, to detect changes."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self._edges[-1])

    @property
    def groups(self) -> list[np.ndarray]:
        """Rows of each file, 1-d int64."""
        return [np.arange(a, b) for a, b in zip(self._edges[:-1], self._edges[1:], strict=True)]

    def where(self, index: int) -> str:
        """File and line of the document that row `index` begins in."""
        file = int(np.searchsorted(self._edges, index, side="right")) - 1
        return self.files[file].where(self.span(file, index)[0])

    def __getitem__(self, index: int) -> Encoded:
        file = int(np.searchsorted(self._edges, index, side="right")) - 1
        return Encoded(self.files[file].read(*self.span(file, index)), start=1)


class Blocks(TextRows):
    """Blocks of `block_size` ids of some token files; the rest of a file is a shorter block with `keep_rest`, otherwise
    left out.
    """

    unit, left_out = "block", "tokens after the last full block"

    def __init__(self, files: Sequence[TokenFile], block_size: int, keep_rest: bool):
        counts = []
        for file in files:
            whole, rest = divmod(file.tokens, block_size)
            counts.append(whole + (rest > 1 and (keep_rest or not whole)))
        super().__init__(files, counts)
        self.block_size = block_size
        self.tokens = sum(min(count * block_size, file.tokens) for count, file in zip(counts, files, strict=True))

    @property
    def identity(self) -> bytes:
        return repr([self.block_size, *(file.tokens for file in self.files)]).encode()

    def span(self, file: int, index: int) -> tuple[int, int]:
        start = (index - int(self._edges[file])) * self.block_size
        return start, min(start + self.block_size, self.files[file].tokens)


class Documents(TextRows):
    """Every document of some token files by itself, split into pieces of `block_size` ids if it is longer.

    So no document is preceded by text of another. A last piece of one token, which has no target, is left out.
    """

    unit, left_out = "document", "last tokens with nothing to learn"

    def __init__(self, files: Sequence[TokenFile], block_size: int):
        pieces = [_pieces(np.asarray(file.ends, dtype=np.int64), block_size) for file in files]
        super().__init__(files, [len(start) for start, _ in pieces])
        self._start, self._stop = (np.concatenate(column) for column in zip(*pieces, strict=True))
        self.lengths = self._stop - self._start
        self.tokens = int(self.lengths.sum())

    @property
    def identity(self) -> bytes:
        return self._start.tobytes() + self._stop.tobytes()

    def span(self, file: int, index: int) -> tuple[int, int]:
        return int(self._start[index]), int(self._stop[index])


def _pieces(ends: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the pieces of documents that end at `ends`."""
    begins = np.concatenate([[0], ends[:-1]])
    counts = -(-(ends - begins) // size)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(begins, counts) + number * size
    stop = np.minimum(start + size, np.repeat(ends, counts))
    return start[stop - start > 1], stop[stop - start > 1]


def tokenise(
    sources: Sequence[Sequence[Rows]], encoder: Encoder, validation_fraction: float, what: str
) -> tuple[list[TokenFile], list[TokenFile]]:
    """Token files: one per source for training, and one of all held-out documents for validation.

    Whole documents are held out, by the hash of their text.

    Args:
        sources: the files of each source.
        encoder: the encoder that makes the ids.
        validation_fraction: share of each source's documents to hold out.
        what: the name of the data, for messages.
    """
    files = [rows for group in sources for rows in group]
    how = encoder.identity
    how = how and {**how, "text": True, "fraction": validation_fraction, "files": [len(group) for group in sources]}
    store = kept(key_of(files, how), lambda writer: _fill(writer, sources, encoder, validation_fraction, what), what)
    train = [TokenFile(store, str(number), files) for number in range(len(sources))]
    validation = TokenFile(store, _HELD, files)
    return train, [validation] if validation.tokens else []


def _fill(
    writer: Writer, sources: Sequence[Sequence[Rows]], encoder: Encoder, fraction: float, what: str
) -> dict[str, Any]:
    """Writes the parts of a store. Two passes over each source: one for the hashes, if some are held out, and one for
    the ids."""
    names = [*map(str, range(len(sources))), _HELD]
    parts = {name: _Part(writer, name) for name in names}
    before = 0
    for name, files in zip(names, sources, strict=False):
        held = np.zeros(sum(map(len, files)), dtype=bool)
        if fraction:
            texts = (record for *_, record in records_with_progress(files, "text", f"{what}: reading"))
            keys = (hash64(record.text) for record in texts if isinstance(record, Text))
            held = held_out(np.fromiter(keys, dtype=np.uint64, count=len(held)), fraction)
        told = f"{what}: tokenising"
        for i, (file, row, _, _, record) in enumerate(records_with_progress(files, "text", told)):
            assert isinstance(record, Text)
            part = parts[_HELD if held[i] else name]
            if record.text.strip():
                part.add(encoder.document(record.text), before + file, row)
            else:
                part.blank += 1
        before += len(files)
    return {"blank": {name: part.blank for name, part in parts.items()}}


def block_report(name: str, rows: TextRows, documents: int) -> SplitReport:
    """The counts of rows that were made from `documents` documents."""
    report = SplitReport(name, rows.unit, rows=documents, records=len(rows), kept=len(rows), tokens=rows.tokens)
    if left := sum(file.tokens for file in rows.files) - rows.tokens:
        report.dropped[rows.left_out] = left
    if blank := sum(file.blank for file in rows.files):
        report.dropped["blank documents"] = blank
    return report
