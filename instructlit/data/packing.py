"""Documents as one long row of ids on disk, cut into blocks of equal length."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from instructlit.data.readers import Rows
from instructlit.data.records import records_of
from instructlit.data.report import SplitReport
from instructlit.data.splits import hash64, held_out
from instructlit.data.tokenization import Encoded, Encoder
from instructlit.types import Text


class TokenFile:
    """Ids of many documents, each with its EOS, one after the other in a temporary file (uint32, mapped, not read).

    The file goes when this object does.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="instructlit-tokens-")
        self.path = str(Path(self._folder.name) / "tokens.bin")
        self._writer: Any = open(self.path, "wb")  # noqa: SIM115
        self.documents = self.tokens = self.blank = 0
        self._map: np.ndarray | None = None

    def append(self, ids: Sequence[int]) -> None:
        """Adds one document."""
        self._writer.write(np.asarray(ids, dtype=np.uint32).tobytes())
        self.documents += 1
        self.tokens += len(ids)

    def read(self, start: int, end: int) -> list[int]:
        """Ids from `start` up to `end`."""
        if self._map is None:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._map = np.memmap(self.path, dtype=np.uint32, mode="r")
        return self._map[start:end].tolist()

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: the file's name, not its content."""
        self.read(0, 0)
        return {**self.__dict__, "_folder": None, "_writer": None, "_map": None}


class Blocks(Dataset):
    """Blocks of `block_size` ids of some token files; a file's rest is a shorter block where `keep_rest`, else left
    out.

    Every token of a block but the first is a target.
    """

    def __init__(self, files: Sequence[TokenFile], block_size: int, keep_rest: bool):
        self.files, self.block_size = list(files), block_size
        self.counts = []
        for file in files:
            whole, rest = divmod(file.tokens, block_size)
            self.counts.append(whole + (rest > 1 and (keep_rest or not whole)))
        self._edges = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return int(self._edges[-1])

    @property
    def identity(self) -> bytes:
        """Tokens of every file and the size of a block: what tells whether the text has changed."""
        return repr([self.block_size, *(file.tokens for file in self.files)]).encode()

    @property
    def groups(self) -> list[np.ndarray]:
        """Blocks of each file, 1-d int64."""
        return [np.arange(a, b) for a, b in zip(self._edges[:-1], self._edges[1:], strict=True)]

    @property
    def tokens(self) -> int:
        """Tokens in all blocks."""
        whole = (min(count * self.block_size, file.tokens) for count, file in zip(self.counts, self.files, strict=True))
        return sum(whole)

    def __getitem__(self, index: int) -> Encoded:
        f = int(np.searchsorted(self._edges, index, side="right")) - 1
        start = (index - int(self._edges[f])) * self.block_size
        return Encoded(self.files[f].read(start, min(start + self.block_size, self.files[f].tokens)), start=1)


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
        for i, (*_, record) in enumerate(records_of(files, "text")):
            assert isinstance(record, Text)
            target = validation if held[i] else store
            if record.text.strip():
                target.append(encoder.document(record.text))
            else:
                target.blank += 1
        train.append(store)
    return train, [validation] if validation.tokens else []


def block_report(name: str, blocks: Blocks, rows: int) -> SplitReport:
    """The counts of some blocks."""
    report = SplitReport(name, "block", rows=rows, records=len(blocks), kept=len(blocks), tokens=blocks.tokens)
    left = sum(file.tokens for file in blocks.files) - blocks.tokens
    if left:
        report.dropped["tokens behind the last whole block"] = left
    if blank := sum(file.blank for file in blocks.files):
        report.dropped["blank documents"] = blank
    return report
