"""The words that conversations are made of. Plain data."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """Ada Adam Agnes Alan Alba Albert Alex Alice Alma Amara Amir Amy Ana Anders Andrea Andrew Angela Anita Anna Anton
    Arthur Astrid Ava Barbara Ben Bella Boris Brian Bruno Carl Carla Carmen Cecilia Chen Chloe Clara Claude Daniel
    Dara David Diana Diego Dora Edgar Edith Elena Eli Elias Elin Elise Ella Elsa Emil Emily Emma Eric Erik Esther
    Eva Farid Fatima Felix Fiona Flora Frank Freya George Gina Grace Greta Gustav Hana Hanna Harry Hassan Hector
    Heidi Helen Henry Hilda Hugo Ian Ida Igor Ines Ingrid Iris Isaac Isabel Ivan Jack Jacob James Jan Jane Jean
    Jenny Joan Joel Johan John Jonas Jorge Josef Julia Julian Kai Karen Karim Karl Kate Keiko Kenji Kim Lars Laura
    Lea Lena Leo Leon Leila Liam Lina Linda Lisa Louis Luca Lucas Lucy Luis Luna Magda Maja Marc Marco Maria Marie
    Mario Mark Marta Martin Mary Mateo Maya Meera Mia Miguel Mila Milan Mina Miriam Moritz Nadia Naomi Nathan Nell
    Nico Nils Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra Pia Priya Rahul
    Ravi Rosa Rose Ruth Ryan Sally Sam Samir Sara Sarah Selma Simon Sofia Stefan Stella Sven Tara Tess Thomas Tim
    Tina Tom Tomas Uma Vera Victor Viktor Vivian Walter Wanda Wei Will Xenia Yara Yuki Yusuf Zara Zoe"""
)
CITIES = _words(
    """Paris London Berlin Rome Madrid Lisbon Vienna Prague Warsaw Dublin Oslo Helsinki Athens Cairo Tokyo Kyoto
    Osaka Beijing Shanghai Delhi Mumbai Sydney Toronto Montreal Ottawa Chicago Boston Seattle Denver Austin Lima
    Bogota Quito Hamburg Munich Milan Naples Turin Lyon Nice Geneva Zurich Basel Porto Seville Leeds York Oxford
    Bath Glasgow"""
)
COLOURS = _words("red blue green yellow orange purple pink brown black white grey silver gold violet turquoise")
ANIMALS = _words(
    """cat dog horse rabbit parrot hamster turtle fox bear wolf lion tiger owl duck goat sheep cow mouse frog snake"""
)
FOODS = _words("pizza pasta rice soup bread cheese salad sushi curry fish noodles pancakes apples cake chocolate")
FRUITS = _words("apple banana cherry grape lemon mango melon orange peach pear plum kiwi")
JOBS = _words(
    """teacher doctor nurse baker painter engineer lawyer farmer pilot writer singer cook gardener student driver"""
)
THINGS = _words(
    """box door key book lamp table chair boat train garden tower bridge river clock letter bottle basket mirror
    window drawer cabinet ticket wallet suitcase notebook bicycle safe vault locker room office kitchen station
    market"""
)
ADJECTIVES = _words(
    """old new small large long short bright dark quiet loud warm cold heavy light narrow wide round square empty
    full simple strange pretty plain wooden iron golden broken little great"""
)
VERBS = _words("saw found painted moved opened closed watched carried sold bought cleaned repaired lost kept")
PLACES = _words("park street village harbour forest school library museum hall square valley field beach cellar")
TIMES = _words("morning evening afternoon night summer winter autumn spring Monday Friday Sunday")
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = _words("January February March April May June July August September October November December")
SEASONS = ("spring", "summer", "autumn", "winter")

G7 = {
    "Canada": "Ottawa",
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "the United Kingdom": "London",
    "the United States": "Washington, D.C.",
}
OTHER_CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Chile": "Santiago",
    "China": "Beijing",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Ireland": "Dublin",
    "Kenya": "Nairobi",
    "Mexico": "Mexico City",
    "the Netherlands": "Amsterdam",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
}
CAPITALS = {**G7, **OTHER_CAPITALS}
ALIASES = {
    "the United Kingdom": ("the UK", "Britain", "Great Britain"),
    "the United States": ("the USA", "the US", "the United States of America"),
}

_ONSETS = _words("b bl br c ch d dr f g gr h j k l m n p r s sh st t tr v w y z")
_VOWELS = _words("a e i o u ai ea ia o a e i")
_ENDS = ["", "", "", "n", "r", "s", "l", "m", "x", "th"]
SYLLABLES = tuple(
    onset + vowel + end for onset in _ONSETS for vowel in sorted(set(_VOWELS)) for end in sorted(set(_ENDS))
)
