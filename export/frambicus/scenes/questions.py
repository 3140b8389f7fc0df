"""Questions about a scene with the one right answer that its facts give; what is not beyond doubt is not asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemm.export.frambicus.scenes.backgrounds import Rng
from edgemm.export.frambicus.scenes.compose import Scene, Thing
from edgemm.export.frambicus.scenes.words import NUMBERS, article, countable, plural, verb


@dataclass(frozen=True)
class Asked:
    """A question and its answer. `kind` is one of KINDS."""

    kind: str
    question: str
    answer: str


def questions(scene: Scene, rng: Rng, each: int = 1) -> list[Asked]:
    """Up to `each` questions of every kind that the scene has an answer to."""
    asked: list[Asked] = []
    for make in KINDS.values():
        found = make(scene, rng)
        asked += [found[i] for i in sorted(rng.permutation(len(found))[:each])]
    return asked


def _single(scene: Scene) -> list[Thing]:
    """What one can speak of as "the dog": there is one, and it is countable."""
    return [things[0] for noun, things in scene.groups.items() if len(things) == 1 and countable(noun)]


def _what(scene: Scene, rng: Rng) -> list[Asked]:
    if len(scene.groups) == 1:
        noun, things = next(iter(scene.groups.items()))
        ask = "what is in the picture?" if len(things) == 1 else "what are these?"
        return [Asked("what", ask, noun if len(things) == 1 else plural(noun))]
    found = []
    for other in _single(scene):
        for relation in ("left of", "right of", "above", "below"):
            there = {t.noun for t in scene.things if t is not other and relation in scene.relations(t, other)}
            unsure = any(_unsure(scene, t, other, relation) for t in scene.things if t is not other)
            if len(there) == 1 and not unsure:
                found.append(Asked("what", f"what is {_said(relation)} the {other.noun}?", there.pop()))
    return found


def _unsure(scene: Scene, one: Thing, other: Thing, relation: str) -> bool:
    """Whether neither a relation nor its opposite holds: a person might say either."""
    return not {relation, _OPPOSITE[relation]} & set(scene.relations(one, other))


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _said(relation: str) -> str:
    return f"to the {relation}" if relation.endswith(" of") else relation


def _count(scene: Scene, rng: Rng) -> list[Asked]:
    found = [
        Asked("count", f"how many {plural(noun)} are there?", NUMBERS[len(things)])
        for noun, things in scene.groups.items()
        if countable(noun)
    ]
    found.append(Asked("count", "how many objects are there?", NUMBERS[len(scene.things)]))
    return found


def _colour(scene: Scene, rng: Rng) -> list[Asked]:
    return [
        Asked("color", f"what color {verb(thing.noun)} the {thing.noun}?", thing.colour)
        for noun, (thing, *more) in scene.groups.items()
        if thing.colour and not more and thing.colour not in noun.split()
    ]


def _presence(scene: Scene, rng: Rng) -> list[Asked]:
    """One that is there or one that is not, as likely."""
    there = list(scene.groups)
    absent = [noun for noun in scene.nouns if noun not in scene.groups]
    if there and (rng.random() < 0.5 or not absent):
        noun, answer = there[rng.integers(len(there))], "yes"
    elif absent:
        noun, answer = absent[rng.integers(len(absent))], "no"
    else:
        return []
    word = verb(noun)
    return [Asked("presence", f"{word} there {article(noun) if word == 'is' else noun}?", answer)]


def _relation(scene: Scene, rng: Rng) -> list[Asked]:
    """Yes-or-no questions on two objects, in which no word but the relation tells the answer."""
    found = []
    singles = _single(scene)
    for one in singles:
        for other in singles:
            for held in scene.relations(one, other) if one is not other else ():
                asked = held if rng.random() < 0.5 else _OPPOSITE[held]
                question = f"is the {one.noun} {_said(asked)} the {other.noun}?"
                found.append(Asked("relation", question, "yes" if asked == held else "no"))
    return found


def _where(scene: Scene, rng: Rng) -> list[Asked]:
    """The side of the picture on which something lies, where it is one side beyond doubt."""
    found = []
    middle = len(scene.picture) / 2
    for thing in _single(scene):
        dx, dy = (m - middle for m in thing.middle)
        far, near = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
        if far < scene.margin_px or near > far / 2:
            continue
        side = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy < 0 else "bottom")
        found.append(Asked("where", f"where is the {thing.noun}?", side))
    return found


KINDS: dict[str, Callable[[Scene, Rng], list[Asked]]] = {
    "what": _what,
    "count": _count,
    "color": _colour,
    "presence": _presence,
    "relation": _relation,
    "where": _where,
}
