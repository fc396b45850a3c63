"""A completion as the gold scorer sees it, and the small counts that every criterion is built from."""

from functools import cached_property
from itertools import pairwise

from instructlit.world import lexicon

_MEMBERS = {name: frozenset(words) for name, words in lexicon.CATEGORIES.items()}


class Answer:
    """The words of a completion, split at spaces.

    Args:
        text: the completion; special tokens must have been removed.
    """

    def __init__(self, text: str):
        self.raw = text.split()
        self.words = [lexicon.LOWER.get(word, word) for word in self.raw]
        self.content = [word for word in self.words if word not in lexicon.PUNCTUATION]
        self.have = frozenset(self.content)

    def of(self, category: str) -> list[str]:
        """The distinct words of a category, in order of appearance."""
        members = _MEMBERS[category]
        return list(dict.fromkeys(word for word in self.content if word in members))

    def any(self, words: tuple[str, ...]) -> bool:
        """True if one of `words` occurs."""
        return not self.have.isdisjoint(words)

    def has(self, *words: str) -> float:
        """The share of `words` that occurs."""
        return sum(word in self.have for word in words) / len(words)

    @cached_property
    def sentences(self) -> int:
        """The number of sentence ends; text after the last one counts as a sentence."""
        ends = sum(word in lexicon.ENDS for word in self.words)
        return ends + bool(self.words and self.words[-1] not in lexicon.ENDS)

    @cached_property
    def ended(self) -> bool:
        """True if the last mark is a full stop, a question mark or an exclamation mark."""
        return bool(self.words) and self.words[-1] in lexicon.ENDS

    @cached_property
    def repeated(self) -> float:
        """The share of word pairs that occurred before in the completion."""
        pairs = list(pairwise(self.words))
        return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0

    @cached_property
    def unknowing(self) -> bool:
        """True if the answer says that it does not know."""
        return "do not know" in " ".join(self.words)
