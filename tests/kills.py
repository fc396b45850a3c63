"""A kill while a file is being written, in this process."""

from pathlib import Path

import pytest


def killed_while_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The file `name` is never whole: of what is written there is half, and then an interrupt comes."""
    rename = Path.replace

    def half(path: Path, target: Path) -> Path:
        if Path(target).name != name:
            return rename(path, target)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", half)
