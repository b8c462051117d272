"""The words in the pictures: what cards say, what is sold, where trains go, what a lab measures.

Each list is split by a hash of the word: about one in six is held out and never drawn for training.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, replace
from string import ascii_uppercase

import numpy as np

HELD_OUT_ONE_IN = 6
INVENTED: ContextVar[float] = ContextVar("share of draws with invented words", default=0.0)
"""Training sets it: who meets words that nobody knows reads letters and does not guess words."""
LONGEST_INVENTED = 11

WORDS = tuple(
    "apple anchor arrow bacon badge banjo basil beach berry bottle bridge broom butter button "
    "cactus camel candle canoe carpet castle cedar cherry circus cloud clover coffee comet coral "
    "cotton cradle crayon desert dragon drum eagle engine fabric falcon feather ferry fiddle "
    "forest fossil garden ginger glove guitar hammer harbor hazel helmet honey island jacket "
    "jungle kettle kitten ladder lantern lemon lizard magnet maple marble meadow melon mirror "
    "monkey morning needle nickel ocean olive orchid otter oyster paddle panda paper parrot "
    "pebble pencil pepper piano pigeon pillow planet pocket potato prairie pumpkin puzzle quartz "
    "rabbit radish raven ribbon river robin rocket saddle salmon shadow silver sparrow spider "
    "spoon summer sunset teapot temple thunder ticket tiger timber tomato tulip tunnel turtle "
    "valley velvet violin walnut whistle window winter wizard yogurt zebra".split()
)
GOODS = tuple(
    "apples bananas beans beer bread butter cabbage carrots celery cheese cherries chicken cider "
    "cocoa coffee cookies corn cream cucumber dates eggs fish flour garlic grapes ham honey jam "
    "juice ketchup leeks lemons lettuce limes mangos milk muesli mustard noodles nuts oats olives "
    "onions oranges pasta peaches pears peas pepper pickles plums potatoes rice salad salmon salt "
    "sausage soap soup spinach sugar tea tofu tomatoes tuna vinegar walnuts water yeast "
    "yogurt".split()
)
PLACES = tuple(
    "Aarhus Aachen Basel Bergen Berlin Bilbao Bonn Bremen Brno Cadiz Calais Cardiff Como Cork "
    "Dijon Dover Dresden Dublin Erfurt Essen Exeter Ferrara Fulda Galway Geneva Genoa Ghent Graz "
    "Hanover Kassel Kiel Krakow Leeds Leiden Lille Ulm Lisbon London Lucca Lund Lyon Madrid "
    "Malaga Malmo Metz Milan Munich Namur Nantes Naples Nice Oslo Oxford Padua Paris Pavia Perth "
    "Pisa Porto Prague Reims Rennes Riga Rome Rostock Siena Tours Trento Trier Turin Utrecht "
    "Venice Verona Vienna Warsaw York Zurich".split()
)
NAMES = tuple(
    "Ada Alma Anna Ben Boris Carl Clara Cleo Dan Dora Elena Emil Eva Felix Finn Flora Gail Greta "
    "Hanna Hugo Ida Igor Inga Iris Jack Jan Jonas Julia Karin Kim Lars Laura Leo Lena Luca Maja "
    "Marco Mia Nils Nora Olga Oscar Otto Paul Petra Quinn Rita Rosa Ruth Sam Sara Simon Sofia Sven "
    "Tara Theo Tina Tom Uma Vera Viktor Will Yara Zoe".split()
)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = tuple("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
# What the bars of one chart stand for: words of one kind.
SERIES = (NAMES, tuple(word.capitalize() for word in GOODS), PLACES, DAYS, MONTHS)
SHOPS = tuple(
    "Corner Market|Green Basket|Daily Grocer|Harvest Shop|Old Mill Store|Sunny Foods|Village Pantry"
    "|Bridge Street Deli|Fresh & Fine|The Larder|Orchard Stall|Station Kiosk".split("|")
)
MEASURES = tuple(
    "Visitors|Units sold|Rainfall in mm|Points|Sales|Members|Hours|Tickets|Orders|Parcels|Goals"
    "|Trips".split("|")
)


@dataclass(frozen=True)
class Analyte:
    """Something a lab measures: unit, decimals written, and an adult's usual range.

    The ranges are common textbook values, good enough to read and compare; they are no advice.
    """

    name: str
    unit: str
    decimals: int
    low: float
    high: float


ANALYTES = (
    Analyte("Sodium", "mmol/l", 0, 135, 145),
    Analyte("Potassium", "mmol/l", 1, 3.5, 5.1),
    Analyte("Chloride", "mmol/l", 0, 98, 107),
    Analyte("Calcium", "mmol/l", 2, 2.15, 2.55),
    Analyte("Magnesium", "mmol/l", 2, 0.66, 1.07),
    Analyte("Phosphate", "mmol/l", 2, 0.81, 1.45),
    Analyte("Glucose", "mg/dl", 0, 70, 99),
    Analyte("Urea", "mg/dl", 0, 17, 43),
    Analyte("Creatinine", "mg/dl", 2, 0.67, 1.17),
    Analyte("Albumin", "g/l", 0, 35, 52),
    Analyte("Protein", "g/l", 0, 64, 83),
    Analyte("Bilirubin", "mg/dl", 1, 0.2, 1.2),
    Analyte("ALT", "U/l", 0, 10, 45),
    Analyte("AST", "U/l", 0, 10, 35),
    Analyte("GGT", "U/l", 0, 10, 60),
    Analyte("LDH", "U/l", 0, 135, 225),
    Analyte("Lipase", "U/l", 0, 13, 60),
    Analyte("Iron", "ug/dl", 0, 59, 158),
    Analyte("Ferritin", "ug/l", 0, 30, 300),
    Analyte("Haemoglobin", "g/dl", 1, 12.0, 17.5),
    Analyte("Leukocytes", "10^9/l", 1, 4.0, 10.0),
    Analyte("Platelets", "10^9/l", 0, 150, 400),
    Analyte("Cholesterol", "mg/dl", 0, 120, 200),
    Analyte("TSH", "mU/l", 2, 0.40, 4.00),
    Analyte("CRP", "mg/l", 1, 0.1, 5.0),
    Analyte("Uric acid", "mg/dl", 1, 3.4, 7.0),
    Analyte("Folate", "ug/l", 1, 3.9, 26.8),
    Analyte("Zinc", "ug/dl", 0, 70, 120),
    Analyte("Lactate", "mmol/l", 1, 0.5, 2.2),
    Analyte("Amylase", "U/l", 0, 28, 100),
)


def is_held_out(word: str) -> bool:
    """Tells whether a word belongs to the evaluation split."""
    return hashlib.sha256(word.lower().encode()).digest()[1] % HELD_OUT_ONE_IN == 0


def part(words: tuple[str, ...], *, held_out: bool) -> tuple[str, ...]:
    """Returns the words of one split."""
    return tuple(word for word in words if is_held_out(word) == held_out)


def analytes(*, held_out: bool) -> tuple[Analyte, ...]:
    """Returns what a lab measures in one split."""
    return tuple(one for one in ANALYTES if is_held_out(one.name) == held_out)


def analyte(name: str) -> Analyte:
    """Returns what a name stands for; one that was invented is always measured like the same."""
    known = {one.name: one for one in ANALYTES}
    digest = hashlib.sha256(name.encode()).digest()
    return known.get(name) or replace(ANALYTES[digest[0] % len(ANALYTES)], name=name)


def draw(
    rng: np.random.Generator, words: tuple[str, ...], count: int, *, held_out: bool
) -> list[str]:
    """Draws different words of a split; for evaluation, what is missing comes from the other.

    In training nothing held out is drawn, so a short list may give fewer words than asked for, and
    some of the words are invented, with abbreviations among them where the list has some.
    """
    if not held_out and (share := INVENTED.get()) and rng.random() < share:
        has_abbreviations = any(word.isupper() for word in words)
        return invent(rng, count, capital=words[0][0].isupper(), abbreviations=has_abbreviations)
    own = part(words, held_out=held_out)
    other = part(words, held_out=not held_out) if held_out else ()
    chosen = [own[i] for i in rng.permutation(len(own))[:count]]
    chosen += [other[i] for i in rng.permutation(len(other))[: count - len(chosen)]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def draw_absent(
    rng: np.random.Generator, words: tuple[str, ...], there: tuple[str, ...], *, held_out: bool
) -> str:
    """Draws a word of a list, or one like those, that is not there; of a full list, a name.

    It is drawn as what is there is: nothing can be told from the word alone.
    """
    known = {word.lower() for word in there}
    for count in (len(there) + 1, len(words)):
        drawn = draw(rng, words, count, held_out=held_out)
        rest = [word for word in drawn if word.lower() not in known]
        if rest:
            return rest[rng.integers(len(rest))]
    return draw_absent(rng, NAMES, there, held_out=held_out)


def invent(
    rng: np.random.Generator, count: int, *, capital: bool, abbreviations: bool = False
) -> list[str]:
    """Makes different words up: halves of known ones put together, syllables, or any letters.

    With `abbreviations`, a third of them are two to four capital letters.
    """
    known = [word.lower() for word in part((*WORDS, *GOODS, *PLACES), held_out=False)]
    made: list[str] = []
    while len(made) < count:
        pick = rng.random()
        if abbreviations and rng.random() < 1 / 3:
            word = "".join(rng.choice(list(ascii_uppercase), int(rng.integers(2, 5))))
        elif pick < 0.4:
            one, two = (known[i] for i in rng.integers(len(known), size=2))
            word = one[: int(rng.integers(1, len(one)))] + two[int(rng.integers(1, len(two))) :]
        elif pick < 0.7:
            size = int(rng.integers(2, 5))
            pairs = zip(rng.choice(list("bcdfghjklmnpqrstvwxz"), size),
                        rng.choice(list("aeiouy"), size), strict=True)  # fmt: skip
            word = "".join(a + b for a, b in pairs)[int(rng.integers(2)) :]
        else:
            size = int(rng.integers(3, 8))
            vowels = rng.random(size) < 0.4
            word = "".join(
                rng.choice(list("aeiou" if is_vowel else "bcdfghjklmnpqrstvwxyz"))
                for is_vowel in vowels
            )
        word = word.capitalize() if capital and not word.isupper() else word
        long_enough = len(word) >= (2 if word.isupper() else 3)
        if (
            long_enough
            and len(word) <= LONGEST_INVENTED
            and word not in made
            and not is_held_out(word)
        ):
            made.append(word)
    return made
