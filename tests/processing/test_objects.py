"""The arithmetic of what a detector found, and that the device does it as the model in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.processing.objects import CHANGES, FACTS, objects_of

LABELS, QUERIES = 3, 12
NOTHING = LABELS


def said(*objects, sure=8.0):
    """Logits and boxes of a frame in which each (label, box) was found by a query of its own, the first most surely."""
    logits, boxes = np.zeros((QUERIES, LABELS + 1), np.float32), np.full((QUERIES, 4), 0.1, np.float32)
    logits[:, NOTHING] = sure
    for query, (label, box) in enumerate(objects):
        logits[query, NOTHING], logits[query, label], boxes[query] = 0, sure - 0.1 * query, box
    return logits, boxes


def facts_of(*objects, count=8):
    logits, boxes = said(*objects)
    found = objects_of([logits], [boxes], count)
    there = found.there[0] != 0
    return dict(zip(found.queries[0, there].tolist(), found.facts[0, there], strict=True))


def parts(facts):
    """Named parts of what is said of one object."""
    sizes = {"middle": 2, "size": 1, "left": 8, "top": 8, "total": 8, "alike": 6, "nth": 6, "group": 6, "groups": 6}
    sizes |= {"side": 4, "amounts": len(CHANGES), "which": len(CHANGES), "most": 1}
    assert sum(sizes.values()) == FACTS
    cut = np.split(facts, np.cumsum(list(sizes.values()))[:-1])
    return {name: part.tolist() if len(part) < 4 else part for name, part in zip(sizes, cut, strict=True)}


def test_orders_and_counts():
    cup, dog, boat = 0, 1, 2
    found = facts_of(
        (dog, (0.8, 0.5, 0.2, 0.2)),
        (cup, (0.5, 0.2, 0.2, 0.2)),
        (cup, (0.1, 0.9, 0.2, 0.2)),
        (boat, (0.3, 0.6, 0.1, 0.1)),
    )
    told = {query: parts(facts) for query, facts in found.items()}
    orders = {name: [int(told[q][name].argmax()) for q in range(4)] for name in ("left", "top", "nth", "group")}
    assert orders == {"left": [3, 2, 0, 1], "top": [1, 0, 3, 2], "nth": [0, 1, 0, 0], "group": [2, 0, 0, 1]}
    counts = {name: [int(told[q][name].argmax()) + 1 for q in range(4)] for name in ("total", "alike", "groups")}
    assert counts == {"total": [4] * 4, "alike": [1, 2, 2, 1], "groups": [3] * 4}
    assert [int(told[q]["side"].argmax()) for q in range(4)] == [1, 2, 0, 0]  # right, top, left and bottom alike, left
    np.testing.assert_allclose(told[0]["middle"], [0.6, 0.0], atol=1e-6)
    assert not any(told[q]["amounts"].any() or told[q]["which"].any() for q in range(4))


def test_two_finds_of_one_object_are_one():
    same = (0.5, 0.5, 0.3, 0.3)
    assert list(facts_of((0, same), (0, (0.52, 0.5, 0.3, 0.3)), (1, same))) == [0]
    beside = (0.66, 0.5, 0.3, 0.3)  # three tenths of both
    assert list(facts_of((0, same), (1, beside))) == [0, 1]
    assert list(facts_of((0, same), (0, (0.62, 0.5, 0.3, 0.3)))) == [0]


def test_what_is_not_sure_is_not_there():
    logits, boxes = said((0, (0.5, 0.5, 0.1, 0.1)))
    logits[0, :] = 0.0
    assert objects_of([logits], [boxes], 4).there.sum() == 1  # three labels against nothing: three quarters
    logits[0, NOTHING] = 1.2
    assert objects_of([logits], [boxes], 4).there.sum() == 0
    assert objects_of([np.full_like(logits, np.nan)], [boxes], 4).there.sum() == 0


def test_no_more_than_asked_for():
    many = [(0, (0.08 * i + 0.05, 0.5, 0.05, 0.05)) for i in range(QUERIES)]
    assert len(facts_of(*many, count=8)) == 8
    found = facts_of(*many, count=QUERIES)
    assert parts(found[11])["left"].argmax() == 7  # as many as can be told apart
    assert parts(found[0])["total"].argmax() == 7


PATHS = {
    "moves left": lambda t: (0.8 - 0.4 * t, 0.5, 0.2, 0.2),
    "moves right": lambda t: (0.2 + 0.4 * t, 0.5, 0.2, 0.2),
    "moves up": lambda t: (0.5, 0.8 - 0.4 * t, 0.2, 0.2),
    "moves down": lambda t: (0.5, 0.2 + 0.4 * t, 0.2, 0.2),
    "appears": lambda t: (0.5, 0.5, 0.2, 0.2) if t > 0.4 else None,
    "disappears": lambda t: (0.5, 0.5, 0.2, 0.2) if t < 0.6 else None,
    "grows": lambda t: (0.5, 0.5, 0.2 + 0.12 * t, 0.2 + 0.12 * t),
    "shrinks": lambda t: (0.5, 0.5, 0.32 - 0.12 * t, 0.32 - 0.12 * t),
}


@pytest.mark.parametrize("happening", CHANGES)
def test_what_happened_stands_beside_who_did_it(happening):
    frames = [
        said(*[(1, box)] if (box := PATHS[happening](i / 7)) else [], (2, (0.1, 0.1, 0.1, 0.1))) for i in range(8)
    ]
    found = objects_of([f[0] for f in frames], [f[1] for f in frames], 4)
    actors = parts(found.facts[(found.labels == 1) & (found.there != 0)][0])
    assert CHANGES[actors["which"].argmax()] == happening
    assert actors["most"] == [1.0]
    bystanders = parts(found.facts[(found.labels == 2) & (found.there != 0)][0])
    assert not bystanders["which"].any()
    assert bystanders["most"] == [0.0]


def test_one_frame_that_missed_it_is_no_change():
    frames = [said(*[] if i == 0 else [(1, (0.5, 0.5, 0.2, 0.2))]) for i in range(8)]
    found = objects_of([f[0] for f in frames], [f[1] for f in frames], 4)
    assert not parts(found.facts[3, 0])["which"].any()


def test_frames_without_anything():
    found = objects_of([said()[0]] * 3, [said()[1]] * 3, 4)
    assert not found.there.any()
    assert not found.facts.any()
    assert torch.from_numpy(found.facts).shape == (3, 4, FACTS)
