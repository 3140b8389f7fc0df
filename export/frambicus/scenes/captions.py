"""Sentences about scenes and clips, made from their facts."""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.export.frambicus.scenes.compose import Scene, Thing
from edgemm.export.frambicus.scenes.words import counted, listed


def described(noun: str, things: Sequence[Thing]) -> str:
    """ "a red apple", "two dogs": the colour where all of a kind have one, the same."""
    colours = {thing.colour for thing in things}
    colour = colours.pop() if len(colours) == 1 else None
    if colour is not None and colour in noun.split():
        colour = None  # an orange is an orange
    return counted(len(things), f"{colour} {noun}" if colour else noun)


def caption(scene: Scene) -> str:
    """What is there from left to right, and how two single objects lie to each other; "nothing" of an empty scene."""
    phrases = [described(noun, things) for noun, things in scene.groups.items()]
    if not phrases:
        return "nothing"
    if len(scene.things) == 2 and len(phrases) == 2:
        one, other = scene.things
        held = scene.relations(one, other)
        if held:
            return f"{phrases[0]} {_said(held[0])} {phrases[1]}"
    return listed(phrases)


def _said(relation: str) -> str:
    return f"to the {relation}" if relation.endswith(" of") else relation
