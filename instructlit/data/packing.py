"""Documents as one long row of ids on disk, read in blocks of equal length or each for itself."""

import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from instructlit.data.readers import Rows
from instructlit.data.records import records_of
from instructlit.data.report import SplitReport
from instructlit.data.splits import hash64, held_out
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.errors import UserError
from instructlit.types import Text


class TokenFile:
    """Ids of many documents, each with its EOS, one after the other in a temporary file (uint32, mapped, not read).

    The file goes when this object does.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="instructlit-tokens-")
        self.path = str(Path(self._folder.name) / "tokens.bin")
        self._writer: Any = open(self.path, "wb")  # noqa: SIM115
        self.ends = array("q")  # where each document ends
        self.origins: list[Rows] = []  # the files that documents came from,
        self._origin, self._row = array("i"), array("q")  # and for each document which of them and which row
        self.tokens = self.blank = 0
        self._map: np.ndarray | None = None

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.ends)

    def append(self, ids: Sequence[int], origin: Rows, row: int) -> None:
        """Adds one document, which is that row of `origin`."""
        with self._explained():
            self._writer.write(np.asarray(ids, dtype=np.uint32).tobytes())
        self.tokens += len(ids)
        self.ends.append(self.tokens)
        if not self.origins or self.origins[-1] is not origin:
            self.origins.append(origin)
        self._origin.append(len(self.origins) - 1)
        self._row.append(row)

    def read(self, start: int, end: int) -> list[int]:
        """Ids from `start` up to `end`."""
        if self._map is None:
            with self._explained():
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
                self._map = np.memmap(self.path, dtype=np.uint32, mode="r")
        return self._map[start:end].tolist()

    def where(self, position: int) -> str:
        """File and line of the document that the id at `position` belongs to."""
        document = bisect_right(self.ends, position)
        return self.origins[self._origin[document]].where(self._row[document])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the temporary file for the ids of the text is of no use: {error.strerror}",
                where=self.path,
                expected="four bytes a token of room there, and that nobody clears the folder during the run",
                fix="set TMPDIR to a folder that has both",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: the file's name, not its content."""
        self.read(0, 0)
        return {**self.__dict__, "_folder": None, "_writer": None, "_map": None}


class TextRows(Dataset):
    """Stretches of some token files, each a row in which every token but the first is a target.

    Args:
        files: the token files.
        counts: rows of each.
    """

    unit: str  # what a row is called in a report
    left_out: str  # and what the tokens of no row are
    tokens: int  # in all rows
    lengths: np.ndarray | None = None  # of each row, where they differ

    def __init__(self, files: Sequence[TokenFile], counts: Sequence[int]):
        self.files = list(files)
        self._edges = np.cumsum([0, *counts])

    def span(self, file: int, index: int) -> tuple[int, int]:
        """Where row `index`, which lies in that file, begins and stops."""
        raise NotImplementedError

    @property
    def identity(self) -> bytes:
        """What tells whether the text has changed."""
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
    """Blocks of `block_size` ids of some token files; a file's rest is a shorter block where `keep_rest`, else left
    out.
    """

    unit, left_out = "block", "tokens behind the last whole block"

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
    """Every document of some token files by itself, in pieces of `block_size` ids where it is longer than that.

    No text stands before a document that does not belong to it. A last piece of one token, which has no target, is left
    out.
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
    """Where the pieces of documents with those ends begin and stop."""
    begins = np.concatenate([[0], ends[:-1]])
    counts = -(-(ends - begins) // size)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(begins, counts) + number * size
    stop = np.minimum(start + size, np.repeat(ends, counts))
    return start[stop - start > 1], stop[stop - start > 1]


def tokenise(sources: Sequence[Sequence[Rows]], encoder: Encoder, validation_fraction: float) -> tuple[list, list]:
    """Token files of each source for training, and of all held-out documents for validation.

    Documents are held out whole, by the hash of their text. Two passes: one for the hashes, one for the ids.
    """
    train, validation = [], TokenFile()
    for files in sources:
        held = np.zeros(sum(map(len, files)), dtype=bool)
        if validation_fraction:
            texts = (record for *_, record in records_of(files, "text"))
            keys = np.array([hash64(record.text) for record in texts if isinstance(record, Text)], dtype=np.uint64)
            held = held_out(keys, validation_fraction)
        store = TokenFile()
        for i, (file, row, _, _, record) in enumerate(records_of(files, "text")):
            assert isinstance(record, Text)
            target = validation if held[i] else store
            if record.text.strip():
                target.append(encoder.document(record.text), files[file], row)
            else:
                target.blank += 1
        train.append(store)
    return train, [validation] if validation.tokens else []


def block_report(name: str, rows: TextRows, documents: int) -> SplitReport:
    """The counts of rows that were made of so many documents."""
    report = SplitReport(name, rows.unit, rows=documents, records=len(rows), kept=len(rows), tokens=rows.tokens)
    if left := sum(file.tokens for file in rows.files) - rows.tokens:
        report.dropped[rows.left_out] = left
    if blank := sum(file.blank for file in rows.files):
        report.dropped["blank documents"] = blank
    return report
