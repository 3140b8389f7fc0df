"""Scenes are the same from the same seed, their facts are true of their pixels, and what is held out stays out."""

import re
from dataclasses import replace

import numpy as np
import pytest

from edgemm.errors import SourceError, UsageError
from edgemm.export.frambicus.scenes import ScenesConfig, compose, film, load_assets, questions
from edgemm.export.frambicus.scenes.assets import textures
from edgemm.export.frambicus.scenes.captions import caption
from edgemm.export.frambicus.scenes.compose import choose, facts, place, seen_masks
from edgemm.export.frambicus.scenes.motion import HAPPENINGS
from edgemm.export.frambicus.scenes.questions import KINDS
from edgemm.export.frambicus.scenes.words import NUMBERS, counted, dominant_colour, listed, plural
from tests.frambicus.sprites import draw_assets

CONFIG = ScenesConfig(size_px=112, held_out=0.3)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return load_assets(draw_assets(tmp_path_factory.mktemp("assets") / "a"))


@pytest.fixture(scope="module")
def scenes(assets):
    return [compose(CONFIG, assets, "train", i) for i in range(60)]


def test_a_seed_gives_the_same_pixels_whatever_was_made_before(assets, scenes):
    again = compose(CONFIG, assets, "train", 41)
    assert np.array_equal(again.picture, scenes[41].picture)
    assert again.things == scenes[41].things
    assert not np.array_equal(compose(CONFIG, assets, "validation", 41).picture, again.picture)
    other = compose(replace(CONFIG, seed=1), assets, "train", 41)
    assert not np.array_equal(other.picture, again.picture)


def test_the_configuration_has_a_hash_of_every_constant():
    assert ScenesConfig().sha256 == ScenesConfig().sha256
    assert ScenesConfig().sha256 != ScenesConfig(margin=0.19).sha256
    with pytest.raises(UsageError, match="no split dev"):
        ScenesConfig().rng("dev", "scene", 0)


def test_boxes_cover_what_is_seen_and_no_more(assets):
    for index in range(20):
        rng = CONFIG.rng("train", "boxes", index)
        layers = []
        for sprite in choose(assets.pool(CONFIG, "train"), 4, CONFIG, rng):
            layer = place(sprite, layers, CONFIG, rng)
            layers += [layer] if layer is not None else []
        things = {t.box_px: t for t in facts(layers, CONFIG)}
        for seen in seen_masks(layers, CONFIG.size_px):
            rows, columns = np.nonzero(seen)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert things[box].visible >= CONFIG.visible


def test_objects_are_as_many_and_as_large_as_the_configuration_says(scenes):
    counts = {len(scene.things) for scene in scenes}
    assert counts == {1, 2, 3, 4, 5}
    for scene in scenes:
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box_px
            assert 0 <= x0 < x1 <= CONFIG.size_px
            assert 0 <= y0 < y1 <= CONFIG.size_px
            if thing.visible == 1:
                share = (x1 - x0) * (y1 - y0) / CONFIG.size_px**2
                assert 0.8 * CONFIG.area[0] <= share <= 1.15 * CONFIG.area[1]


def test_what_is_held_out_is_never_in_training(assets):
    known, unseen = (assets.pool(CONFIG, split) for split in ("train", "unseen"))
    assert known
    assert unseen
    assert not set(known) & set(unseen)
    assert {s.code for group in (*known.values(), *unseen.values()) for s in group} == {s.code for s in assets.sprites}
    assert {s.code for s in (known | unseen)["ball"]} == {"1f534", "1f535"}
    for split, pool in (("train", known), ("validation", known), ("test", known), ("unseen", unseen)):
        for i in range(15):
            assert {t.noun for t in compose(CONFIG, assets, split, i).things} <= set(pool)
            assert film(CONFIG, assets, split, i).actor in {s.code for group in pool.values() for s in group}
    assert not set(textures(CONFIG, "train")) & set(textures(CONFIG, "test"))
    assert not set(assets.backgrounds(CONFIG, "train")) & set(assets.backgrounds(CONFIG, "unseen"))


def test_answers_agree_with_the_facts(scenes):
    asked = [(scene, q) for i, scene in enumerate(scenes) for q in questions(scene, np.random.default_rng(i), each=9)]
    assert {q.kind for _, q in asked} == set(KINDS)
    for scene, q in asked:
        _CHECKS[q.kind](scene, q)


def _of(scene, noun):
    return [t for t in scene.things if t.noun == noun]


def _what(scene, q):
    found = re.fullmatch(r"what is (?:to the )?(left of|right of|above|below) the (.+)\?", q.question)
    if found is None:
        assert q.answer in (scene.things[0].noun, plural(scene.things[0].noun))
        assert len(scene.groups) == 1
        return
    (other,) = _of(scene, found[2])
    assert any(found[1] in scene.relations(t, other) for t in _of(scene, q.answer))
    assert not any(found[1] in scene.relations(t, other) for t in scene.things if t.noun not in (q.answer, found[2]))


def _count(scene, q):
    noun = re.fullmatch(r"how many (.+) are there\?", q.question)[1]
    found = scene.things if noun == "objects" else [t for t in scene.things if plural(t.noun) == noun]
    assert q.answer == NUMBERS[len(found)]


def _colour(scene, q):
    (thing,) = _of(scene, re.fullmatch(r"what color (?:is|are) the (.+)\?", q.question)[1])
    assert q.answer == thing.colour


def _presence(scene, q):
    noun = re.fullmatch(r"(?:is|are) there (?:an? )?(.+)\?", q.question)[1]
    assert q.answer == ("yes" if _of(scene, noun) else "no")
    assert noun in scene.nouns


def _relation(scene, q):
    one, held, other = re.fullmatch(
        r"is the (.+) (?:to the )?(left of|right of|above|below) the (.+)\?", q.question.replace(" to the ", " ")
    ).groups()
    (first,), (second,) = _of(scene, one), _of(scene, other)
    axis = 0 if held in ("left of", "right of") else 1
    before = first.middle[axis] < second.middle[axis]
    assert q.answer == ("yes" if before == (held in ("left of", "above")) else "no")


def _where(scene, q):
    (thing,) = _of(scene, re.fullmatch(r"where is the (.+)\?", q.question)[1])
    x, y = (m / CONFIG.size_px for m in thing.middle)
    assert {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}[q.answer]


_CHECKS = {
    "what": _what, "count": _count, "color": _colour, "presence": _presence, "relation": _relation, "where": _where,
}  # fmt: skip


def test_yes_and_no_are_as_likely(scenes):
    answers = [q.answer for i, s in enumerate(scenes) for q in questions(s, np.random.default_rng(i)) if q.kind in
               ("presence", "relation")]  # fmt: skip
    assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_captions_name_everything(scenes):
    for scene in scenes:
        said = caption(scene)
        for noun, things in scene.groups.items():
            assert (noun if len(things) == 1 else plural(noun)) in said
        if len(scene.things) == 2 and len(scene.groups) == 2:
            assert bool(scene.relations(*scene.things)) == any(w in said for w in ("left of", "above", "below"))


def test_clips_show_what_they_say(assets):
    clips = [film(CONFIG, assets, "train", i) for i in range(60)]
    assert {c.happening for c in clips} == set(HAPPENINGS)
    for clip in clips:
        assert clip.frames.shape == (8, 112, 112, 3)
        assert len(clip.times_s) == 8
        assert clip.times_s[0] <= clip.start_s < clip.end_s <= clip.times_s[-1]
        changed = (clip.frames != clip.frames[:1]).any((1, 2, 3))
        start, end = (clip.times_s.index(t) for t in (clip.start_s, clip.end_s))
        assert not changed[: start + 1].any()
        assert changed[end]
        assert np.array_equal(clip.frames[end], clip.frames[-1])
        present = {t.sprite.code for t in clip.things}
        assert (clip.actor in present) != (clip.happening == "disappears")


def test_english():
    assert counted(1, "egg") == "an egg"
    assert counted(1, "unicorn") == "a unicorn"
    assert counted(2, "mouse") == "two mice"
    assert counted(3, "glass of milk") == "three glasses of milk"
    assert counted(1, "scissors") == "scissors"
    assert counted(2, "scissors") == "two pairs of scissors"
    assert listed(["a", "b", "c"]) == "a, b and c"
    ramp = np.array([[250, 20, 20]] * 6 + [[20, 20, 250]] * 4, np.uint8)
    assert dominant_colour(ramp, 0.55) == "red"
    assert dominant_colour(ramp, 0.7) is None
    names = {"gray": 128, "white": 250, "black": 10}
    assert all(dominant_colour(np.full((4, 3), v, np.uint8), 0.5) == n for n, v in names.items())


def test_absent_assets_say_how_to_get_them(tmp_path):
    with pytest.raises(SourceError, match=r"frambicus_assets\.py"):
        load_assets(tmp_path)
    folder = draw_assets(tmp_path / "b")
    (folder / "sprites/2b50.png").unlink()
    with pytest.raises(SourceError, match=r"2b50\.png is missing"):
        load_assets(folder)
