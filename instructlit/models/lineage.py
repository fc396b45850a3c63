"""What a model folder was made from: `instructlit.json`, read and written."""

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from instructlit.errors import UserError

RECORD = "instructlit.json"
FORMAT = 1
_PACKAGES = ("torch", "transformers", "lightning", "tokenizers", "peft", "bitsandbytes", "numpy", "lm_eval")


def weights_digest(path: str | Path) -> str | None:
    """SHA-256 (hex) over the safetensors files of a folder, one after the other in the order of their names.

    For a folder with a single file it is what `sha256sum` prints. None where there is no such file.
    """
    files = sorted(Path(path).expanduser().glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of python, instructlit and the packages that numbers depend on."""
    import instructlit

    found = {"python": platform.python_version(), "instructlit": instructlit.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def parent(path: str, role: str) -> dict[str, Any]:
    """How a record names a model that another was made from.

    Args:
        path: its folder or Hub name.
        role: what it was used as: "policy", "reference", "reward" or "value".
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {"role": role, "path": path}
    try:
        digest = weights_digest(folder)
    except OSError:  # gone or unreadable by now: no reason to lose the model that was made from it
        digest = None
    entry: dict[str, Any] = {"role": role, "path": path, "weights_sha256": digest}
    record = read_record(folder)
    if record:
        entry["stage"] = record.get("stage")
        entry["parents"] = record.get("parents", [])
    return entry


def make_record(
    stage: str,
    *,
    parents: list[dict[str, Any]] | None = None,
    data: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The record of a model folder, plain JSON values only.

    Args:
        stage: "pretrain", "sft", "reward" or "ppo".
        parents: `parent(...)` of each model that went in.
        data: `{"path", "sha256", "rows"}` of each data file, as a datamodule's `data_files()` gives them.
        config: the run's settings.
        **more: anything else worth keeping, such as the step or the metrics.
    """
    return {
        "format": FORMAT,
        "stage": stage,
        "parents": parents or [],
        "data": data or [],
        "config": config or {},
        **more,
        "versions": versions(),
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a model folder; empty if it has none (a model made elsewhere).

    Raises:
        UserError: the record is not JSON.
    """
    file = Path(path).expanduser() / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(file), fix="export the model again") from error
    return record if isinstance(record, dict) else {}
