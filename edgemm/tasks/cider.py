"""CIDEr-D of captions, as pycocoevalcap computes it (Vedantam, Zitnick and Parikh, 2015)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgemm.tasks.caption_metrics import ORDERS, Gram, Tokens, grams_of
from edgemm.tasks.metrics import Scores

_SIGMA = 6.0  # of the penalty on a difference in length
_SCALE = 10.0  # the "D" variant's own, so that values are like the other metrics'


@dataclass(frozen=True)
class _Vector:
    """A text's n-grams with their TF-IDF weights; `norms` by order. `pairs` stands for its length: it has so many
    2-grams, which is what the original counts.
    """

    weights: dict[Gram, float]
    norms: tuple[float, ...]
    pairs: int


def cider(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> Scores:
    """CIDEr-D times 100, as papers give it: 0 to 1000, more is better; the mean of examples.

    `references` has one list or more of tokens for each of `hypotheses`. An n-gram weighs the more, the fewer
    examples have it in their references: of one example alone everything weighs 0.
    """
    counted = [[grams_of(tokens) for tokens in own] for own in references]
    frequency = Counter(gram for own in counted for gram in set().union(*own))
    documents = math.log(max(1, len(counted)))

    def similar(own: Sequence[Counter[Gram]], hypothesis: Tokens) -> float:
        said = _vector(grams_of(hypothesis), frequency, documents)
        return sum(_likeness(said, _vector(grams, frequency, documents)) for grams in own) / len(own)

    return Scores.mean(100 * similar(own, h) for own, h in zip(counted, hypotheses, strict=True))


def _vector(grams: Counter[Gram], frequency: Counter[Gram], documents: float) -> _Vector:
    weights = {gram: count * (documents - math.log(max(1, frequency[gram]))) for gram, count in grams.items()}
    squares = [0.0] * ORDERS
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    pairs = sum(count for gram, count in grams.items() if len(gram) == 2)
    return _Vector(weights, tuple(map(math.sqrt, squares)), pairs)


def _likeness(said: _Vector, reference: _Vector) -> float:
    """Mean over the orders of the cosine, where no n-gram counts more than in the reference."""
    products = [0.0] * ORDERS
    for gram, weight in said.weights.items():
        wanted = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, wanted) * wanted
    norms = [a * b for a, b in zip(said.norms, reference.norms, strict=True)]
    cosines = [product / norm if norm else product for product, norm in zip(products, norms, strict=True)]
    penalty = math.exp(-((said.pairs - reference.pairs) ** 2) / (2 * _SIGMA**2))
    return _SCALE * penalty * sum(cosines) / ORDERS
