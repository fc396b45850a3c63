"""Whether a completion reads as a sentence of this language.

A table of the word pairs that occur in well-written text, with naming words replaced by their category, so that
`the fox` vouches for `the owl`; a word said twice in a row is never well written. The table is built once, from a fixed
seed, and is the same in every world.
"""

import random
from functools import lru_cache
from itertools import pairwise

from instructlit.world import lexicon
from instructlit.world.answer import Answer

_CLASSES = ("place", "city", "person", "animal", "food", "colour", "number", "job", "thing", "spot", "adjective")
_CLASS_OF = {word: f"<{name}>" for name in reversed(_CLASSES) for word in lexicon.CATEGORIES[name]}
_CLASS_OF |= dict.fromkeys(lexicon.PRAISE, "<praise>")
_CLASS_OF |= dict.fromkeys(lexicon.MOVES, "<move>") | dict.fromkeys(lexicon.MEETS, "<meet>")
_CLASS_OF |= dict.fromkeys(lexicon.HAPPY_VERBS + lexicon.SAD_VERBS, "<feeling>")
_CLASS_OF |= dict.fromkeys(lexicon.RUDE_ADJECTIVES + lexicon.KIND_WORDS, "<adjective>")
_CLASS_OF |= dict.fromkeys(lexicon.RUDE_NOUNS + lexicon.KIND_NOUNS, "<noun>")
_CLASS_OF |= dict.fromkeys(lexicon.STATES, "<state>")
_START, _STOP = "<start>", "<stop>"


def _classes(words: list[str]) -> list[str]:
    return [_START, *(_CLASS_OF.get(word, word) for word in words), _STOP]


@lru_cache(maxsize=1)
def _known_pairs() -> frozenset[tuple[str, str]]:
    from instructlit.world.corpus import PLAIN, retold
    from instructlit.world.facts import Facts
    from instructlit.world.gold import ideal
    from instructlit.world.prompts import TASKS, sample_spec

    rng, facts = random.Random("fluency"), Facts(0)
    pairs: set[tuple[str, str]] = set()
    texts = [ideal(facts, sample_spec(rng, kind=kind), rng) for kind in TASKS for _ in range(150)]
    written = [source for source in PLAIN if source is not retold]  # retold text has words in no order
    texts += [source(facts, rng) for source in written for _ in range(250)]
    for text in texts:
        words = _classes(Answer(text).words)
        pairs.update(pairwise(words))
    for end in lexicon.ENDS:
        pairs.add((end, _STOP))
    return frozenset(pairs)


def fluency(answer: Answer) -> float:
    """The share of neighbouring words of a completion that well-written text has; 0 for an empty one."""
    if not answer.words:
        return 0.0
    words, known = _classes(answer.words), _known_pairs()
    pairs = list(pairwise(words))
    return sum(a != b and (a, b) in known for a, b in pairs) / len(pairs)
