"""Data: readers and formats, chat rendering, tokenising, collating, packing, and the datamodules that a config
names.
"""

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
