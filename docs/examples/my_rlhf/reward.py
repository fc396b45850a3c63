"""A rule in place of the reward model."""

from instructlit.rollout import TextReward
from instructlit.types import PromptText


class Rules(TextReward):
    """A point for each wanted word that a response holds, a point off for each banned one and for every word too many.

    Args:
        wanted: words to say.
        banned: words not to say.
        max_words: longest response that costs nothing.
    """

    def __init__(self, wanted: list[str], banned: list[str] | None = None, max_words: int = 50):
        self.wanted, self.banned, self.max_words = wanted, banned or [], max_words

    def reward(self, prompt: PromptText, response: str) -> float:
        words = response.lower().split()
        said = sum(word in words for word in self.wanted) - sum(word in words for word in self.banned)
        return float(said - max(0, len(words) - self.max_words))
