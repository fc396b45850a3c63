"""Exact match and F1 of one answer, as SQuAD 2 counts them: lm-eval leaves both to a script on the Hub, which scores a
whole set at once. The set's figure is the mean over its questions."""

import re
import string
from collections import Counter
from collections.abc import Sequence


def exact(said: str, right: Sequence[str]) -> float:
    """1 if the answer has the words of a right one; if the question has no answer, 1 for an empty one."""
    return max(float(_words(said) == gold) for gold in _golds(right))


def f1(said: str, right: Sequence[str]) -> float:
    """F1 of the answer's words against those of the closest right answer."""
    return max(_f1(_words(said), gold) for gold in _golds(right))


def _golds(right: Sequence[str]) -> list[list[str]]:
    return [words for text in right if (words := _words(text))] or [[]]


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    return 2 * (Counter(said) & Counter(gold)).total() / (len(said) + len(gold))
