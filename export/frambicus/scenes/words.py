"""English for scenes: plurals, articles, numbers, lists, and names of colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR = {
    "mouse": "mice", "wolf": "wolves", "leaf": "leaves", "knife": "knives", "loaf": "loaves", "calf": "calves",
    "goose": "geese", "ox": "oxen", "tooth": "teeth", "foot": "feet", "person": "people", "man": "men",
    "woman": "women", "child": "children", "cactus": "cacti", "octopus": "octopuses", "potato": "potatoes",
    "tomato": "tomatoes", "mango": "mangoes", "volcano": "volcanoes", "mosquito": "mosquitoes", "scarf": "scarves",
    "wave": "waves", "stove": "stoves", "dove": "doves", "olive": "olives", "glove": "gloves", "snowman": "snowmen",
    "snowflake": "snowflakes", "axe": "axes", "die": "dice", "buffalo": "buffaloes", "hero": "heroes",
}  # fmt: skip
_SAME = (
    "sheep", "fish", "blowfish", "jellyfish", "deer", "bison", "squid", "shrimp", "salmon", "aircraft",
)  # fmt: skip
# Many by their word alone; a second one is another pair, or another bunch.
_PAIRS = (
    "glasses", "scissors", "chopsticks", "jeans", "shorts", "sunglasses", "goggles", "headphones", "trousers", "tongs",
    "gloves", "skis", "socks", "shoes", "maracas",
)  # fmt: skip
_BUNCHES = ("grapes", "cherries", "fries", "beans", "noodles", "blueberries")
_UNCOUNTED = (
    "rice", "bread", "cheese", "broccoli", "corn", "garlic", "honey", "meat", "bacon", "sushi", "butter", "salt",
    "milk", "tea", "money", "luggage", "spaghetti", "chocolate", "pasta", "lettuce", "popcorn", "salad",
)  # fmt: skip
_AN_ANYWAY = ("hour", "honest")
_A_ANYWAY = ("unicorn", "unicycle", "ukulele", "european", "uniform", "ufo", "one-")


def _head(noun: str) -> str:
    """The word that is counted: "bowl" of "wooden bowl of rice"."""
    return noun.split(" of ")[0].split()[-1]


def countable(noun: str) -> bool:
    """Whether one can say "one noun, two nouns" of it."""
    return _head(noun) not in (*_PAIRS, *_BUNCHES, *_UNCOUNTED)


def plural(noun: str) -> str:
    """ "dog" → "dogs"; of several words the last, or the one before "of": "bouquets of flowers"."""
    if " of " in noun:
        head, rest = noun.split(" of ", 1)
        return f"{plural(head)} of {rest}"
    *before, word = noun.split()
    return " ".join([*before, _plural_of(word)])


def _plural_of(word: str) -> str:
    if word in (*_SAME, *_PAIRS, *_BUNCHES, *_UNCOUNTED):
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def article(phrase: str) -> str:
    """ "apple" → "an apple", "red car" → "a red car", "green grapes" → "green grapes"."""
    if not countable(phrase):
        return phrase
    vowel = phrase[0].lower() in "aeiou"
    if phrase.lower().startswith(_A_ANYWAY):
        vowel = False
    return f"{'an' if vowel or phrase.startswith(_AN_ANYWAY) else 'a'} {phrase}"


def verb(noun: str) -> str:
    """ "is" of what is one, "are" of what is many by its word alone (grapes, scissors)."""
    return "are" if _head(noun) in (*_PAIRS, *_BUNCHES) else "is"


def counted(count: int, noun: str) -> str:
    """(1, "dog") → "a dog", (2, "dog") → "two dogs", (2, "bread") → "two pieces of bread"."""
    if count == 1:
        return article(noun)
    if countable(noun):
        return f"{NUMBERS[count]} {plural(noun)}"
    head = _head(noun)
    of = "pairs of" if head in _PAIRS else "bunches of" if head in _BUNCHES else "pieces of"
    return f"{NUMBERS[count]} {of} {noun}"


def listed(phrases: Sequence[str]) -> str:
    """["a", "b", "c"] → "a, b and c"."""
    *before, last = phrases
    return f"{', '.join(before)} and {last}" if before else last


COLOURS = ("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")


def colour_names(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The colour of each pixel [N, 3] as an index into COLOURS, by hue, saturation and value."""
    import cv2

    hue, saturation, value = (
        x.astype(np.float64) for x in np.moveaxis(cv2.cvtColor(rgb[None], cv2.COLOR_RGB2HSV_FULL)[0], -1, 0)
    )
    hue, saturation, value = hue * 360 / 256, saturation / 255, value / 255
    index = COLOURS.index
    names = np.select(
        [hue < 14, hue < 36, hue < 70, hue < 170, hue < 262, hue < 295, hue < 344],
        [index("red"), index("orange"), index("yellow"), index("green"), index("blue"), index("purple"), index("pink")],
        index("red"),
    )
    # Brown is dark or dull orange; a pale red is pink.
    warm = (hue < 42) | (hue >= 350)
    dull = (value < 0.62) | ((saturation < 0.62) & (value < 0.85))
    names = np.where(warm & dull & ~((names == index("red")) & (saturation > 0.75)), index("brown"), names)
    names = np.where((names == index("red")) & (saturation < 0.5), index("pink"), names)
    grey = np.select([value > 0.85, value > 0.3], [index("white"), index("gray")], index("black"))
    return np.where((saturation < 0.16) | (value < 0.18), grey, names)


def dominant_colour(rgb: NDArray[np.uint8], share: float) -> str | None:
    """The colour of at least `share` of the pixels [N, 3]; None where no colour has so many."""
    if not len(rgb):
        return None
    counts = np.bincount(colour_names(np.ascontiguousarray(rgb)), minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= share * len(rgb) else None
