"""Reads the shards of a checkpoint as data. torch pickles the list of shards and every value that is not a tensor, and
unpickles both as code; here the list may name only what torch writes into it, and the values are read as with
`torch.load(weights_only=True)`.
"""

import io
import pathlib
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

_NAMES = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    **{(metadata.__name__, name): getattr(metadata, name) for name in (*metadata.__all__, "_MEM_FORMAT_ENCODING")},
}
"""What torch writes into the list of shards, besides the names of dtypes and the path it was written at."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return pathlib.PurePath
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not data")
        return _NAMES[module, name]


class ShardReader(FileSystemReader):
    """The shards in a folder, whose list is read as data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of shards.

        Raises:
            pickle.UnpicklingError: it holds anything else.
        """
        path = self.fs.concat_path(self.path, filesystem._metadata_fn)
        with self.fs.create_stream(path, "rb") as file:
            found = _Unpickler(file).load()
        if getattr(found, "storage_meta", None) is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class ShardPlanner(DefaultLoadPlanner):
    """Reads values that are not tensors as data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # Written again, so that torch's own unpickling only meets what this process has written.
        data = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), data)
        data.seek(0)
        super().load_bytes(read_item, data)
