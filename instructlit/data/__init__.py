"""Data: readers and formats, chat rendering, tokenising, collating, packing, and the datamodules that a config
names. Each is imported on first use, so that loading a tokenizer does not import Lightning.
"""

from typing import TYPE_CHECKING

from instructlit.lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
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
    },
)
