"""Files that are written whole, and what is no file."""

import os
from pathlib import Path

from instructlit.files import write_rows


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As does a device: replaced by a file, /dev/null would be gone for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_rows(pipe, [{"a": 1}, {"a": 2}])
        assert os.read(reader, 100) == b'{"a": 1}\n{"a": 2}\n'
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
