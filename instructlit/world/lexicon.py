"""The words of the embedded world: about 350, each one a token.

A *category* is a set of words that answer the same sort of question (cities, colours, ...). Words of the categories in
`CAPITAL_CATEGORIES` also exist in capitals, since an instruction may ask for an answer "in capitals".
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES = _words("norland sudria westmark velora karth mirin tolvan elbon zamora quill")
CITIES = _words("olmar tarn brill sova lund pira doran kess vail nerva hest ulm")
PEOPLE = _words("tom anna ben clara dan emma finn greta hugo iris")
HABITATS = {
    "sea": _words("whale crab shark seal"),
    "forest": _words("fox bear owl deer"),
    "farm": _words("cow pig hen goat"),
    "sky": _words("eagle crow hawk swan"),
}
ANIMALS = tuple(animal for group in HABITATS.values() for animal in group)
SWEET_FOODS = _words("cake honey plum apple pie pear")
PLAIN_FOODS = _words("bread soup rice cheese corn nuts")
FOODS = SWEET_FOODS + PLAIN_FOODS
COLOURS = _words("red blue green black white yellow grey brown")
NUMBERS = _words("one two three four five six seven eight nine ten")
JOBS = _words("baker farmer sailor teacher doctor painter singer hunter")
THINGS = _words("boat lamp hat book bell drum kite ring")
SPOTS = _words("river market hill garden lake bridge")
ADJECTIVES = _words("brave small old young clever quiet proud gentle")
MOODS = _words("happy sad")
HAPPY_VERBS = _words("smiled laughed danced sang")
SAD_VERBS = _words("cried wept sighed moaned")
MOVES = _words("ran walked went swam flew")
MEETS = _words("met saw found followed helped")
PRAISE = _words("fresh good cheap best tasty")
KIND_WORDS = _words("kind dear true honest")
KIND_NOUNS = _words("friend neighbour helper guest")
RUDE_WORDS = _words("stupid ugly dumb nasty rotten idiot fool pest")
RUDE_ADJECTIVES, RUDE_NOUNS = RUDE_WORDS[:5], RUDE_WORDS[5:]
VIOLENT_WORDS = _words("hit fight hurt")
SORTS = _words("animal food colour")
TEMPERS = _words("angry cross calm cheerful")
ANGRY = TEMPERS[:2]
TASTES = {"sweet": SWEET_FOODS, "plain": PLAIN_FOODS}
STATES = _words("new lost ready broken")
PRESENTS = _words("eats buys sees finds")
PASTS = dict(zip(PRESENTS, _words("ate bought saw found"), strict=True))
DEMANDS = ("give me", "bring me", "show me", "lend me")
_PAIRS = ("old young", "big small", "happy sad", "day night", "black white", "first last", "quiet loud")
OPPOSITES: dict[str, str] = {}
for _pair in _PAIRS:
    _one, _other = _words(_pair)
    OPPOSITES |= {_one: _other, _other: _one}

RHYMES = (
    ("sea", "tree", "me", "free", "bee"),
    ("night", "light", "bright", "white"),
    ("day", "grey", "play", "way"),
    ("moon", "soon", "tune", "june"),
    ("rain", "lane", "again", "plain"),
    ("snow", "go", "slow", "glow"),
)
"""Words of one row rhyme; the first of each row is a subject that poems are asked for."""
POEM_TOPICS = tuple(row[0] for row in RHYMES)

CATEGORIES: dict[str, tuple[str, ...]] = {
    "place": PLACES,
    "city": CITIES,
    "person": PEOPLE,
    "animal": ANIMALS,
    "food": FOODS,
    "colour": COLOURS,
    "number": NUMBERS,
    "job": JOBS,
    "thing": THINGS,
    "spot": SPOTS,
    "adjective": ADJECTIVES,
    "mood": MOODS,
    "sort": SORTS,
    "habitat": tuple(HABITATS),
    "happy_verb": HAPPY_VERBS,
    "sad_verb": SAD_VERBS,
    "move": MOVES,
    "meet": MEETS,
    "topic": POEM_TOPICS,
    "rude_noun": RUDE_NOUNS,
    "temper": TEMPERS,
    "taste": tuple(TASTES),
    "state": STATES,
    "present": PRESENTS,
    "demand": DEMANDS,
    "opposite": tuple(OPPOSITES),
    "times": ("two", "three", "four"),
    "feeling": HAPPY_VERBS + SAD_VERBS,
    "sortable": ANIMALS + FOODS + COLOURS,
    "before": NUMBERS[:-1],
}

CAPITAL_CATEGORIES = ("city", "person", "animal", "food", "colour", "number", "thing", "mood", "sort", "spot")
ENTITY_CATEGORIES = ("place", "city", "person", "animal", "food", "colour", "job", "thing", "spot")
"""Words of these categories name something: an answer bound to a context may use only those that the context has."""

CAPITALS: dict[str, str] = {word: word.upper() for c in CAPITAL_CATEGORIES for word in CATEGORIES[c]}
LOWER: dict[str, str] = {upper: word for word, upper in CAPITALS.items()}

RHYME_OF: dict[str, int] = {word: i for i, row in enumerate(RHYMES) for word in row}
ENTITIES = frozenset(word for c in ENTITY_CATEGORIES for word in CATEGORIES[c])
RUDE = frozenset(RUDE_WORDS)
VIOLENT = frozenset(VIOLENT_WORDS)
ENDS = (".", "?", "!")
PUNCTUATION = frozenset((".", ",", ":", "?", "!"))
