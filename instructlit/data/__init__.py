"""Data: readers and formats, chat rendering, tokenising, collating, packing, and the datamodules that a config
names. Each is imported when it is asked for: who reads a tokenizer alone does without Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructlit.data.chat import Renderer
    from instructlit.data.comparisons import ComparisonData
    from instructlit.data.demonstrations import DemonstrationData
    from instructlit.data.prompts import PromptData
    from instructlit.data.sampling import ResumableDataLoader
    from instructlit.data.sources import Source, Sources
    from instructlit.data.text import TextData
    from instructlit.data.tokenization import Encoder
    from instructlit.data.tokenizers import load_tokenizer

__all__ = [
    "ComparisonData",
    "DemonstrationData",
    "Encoder",
    "PromptData",
    "Renderer",
    "ResumableDataLoader",
    "Source",
    "Sources",
    "TextData",
    "load_tokenizer",
]

_HOMES = {
    "ComparisonData": "comparisons",
    "DemonstrationData": "demonstrations",
    "Encoder": "tokenization",
    "PromptData": "prompts",
    "Renderer": "chat",
    "ResumableDataLoader": "sampling",
    "Source": "sources",
    "Sources": "sources",
    "TextData": "text",
    "load_tokenizer": "tokenizers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
