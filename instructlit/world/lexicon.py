"""The words of the embedded world: about 350, each one a token.

A *category* is a set of words that answer the same sort of question (cities, colours, ...). Words of the categories in
`CAPITAL_CATEGORIES` also exist in capitals, since an instruction may ask for an answer "in capitals".
"""

PLACES = tuple("norland sudria westmark velora karth mirin tolvan elbon zamora quill".split())
CITIES = tuple("olmar tarn brill sova lund pira doran kess vail nerva hest ulm".split())
PEOPLE = tuple("tom anna ben clara dan emma finn greta hugo iris".split())
HABITATS = {
    "sea": tuple("whale crab shark seal".split()),
    "forest": tuple("fox bear owl deer".split()),
    "farm": tuple("cow pig hen goat".split()),
    "sky": tuple("eagle crow hawk swan".split()),
}
ANIMALS = tuple(animal for group in HABITATS.values() for animal in group)
SWEET_FOODS = tuple("cake honey plum apple pie pear".split())
PLAIN_FOODS = tuple("bread soup rice cheese corn nuts".split())
FOODS = SWEET_FOODS + PLAIN_FOODS
COLOURS = tuple("red blue green black white yellow grey brown".split())
NUMBERS = tuple("one two three four five six seven eight nine ten".split())
JOBS = tuple("baker farmer sailor teacher doctor painter singer hunter".split())
THINGS = tuple("boat lamp hat book bell drum kite ring".split())
SPOTS = tuple("river market hill garden lake bridge".split())
ADJECTIVES = tuple("brave small old young clever quiet proud gentle".split())
MOODS = tuple("happy sad".split())
HAPPY_VERBS = tuple("smiled laughed danced sang".split())
SAD_VERBS = tuple("cried wept sighed moaned".split())
MOVES = tuple("ran walked went swam flew".split())
MEETS = tuple("met saw found followed helped".split())
PRAISE = tuple("fresh good cheap best tasty".split())
KIND_WORDS = tuple("kind dear true honest".split())
KIND_NOUNS = tuple("friend neighbour helper guest".split())
RUDE_WORDS = tuple("stupid ugly dumb nasty rotten idiot fool pest".split())
RUDE_ADJECTIVES, RUDE_NOUNS = RUDE_WORDS[:5], RUDE_WORDS[5:]
VIOLENT_WORDS = tuple("hit fight hurt".split())
SORTS = tuple("animal food colour".split())
TEMPERS = tuple("angry cross calm cheerful".split())
ANGRY = TEMPERS[:2]
TASTES = {"sweet": SWEET_FOODS, "plain": PLAIN_FOODS}
STATES = tuple("new lost ready broken".split())
PRESENTS = tuple("eats buys sees finds".split())
PASTS = dict(zip(PRESENTS, "ate bought saw found".split(), strict=True))
DEMANDS = ("give me", "bring me", "show me", "lend me")
OPPOSITES = dict(old="young", big="small", happy="sad", day="night", black="white", first="last", quiet="loud")
OPPOSITES.update({value: key for key, value in OPPOSITES.items()})

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

