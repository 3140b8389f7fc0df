"""Every metric that edgemm knows: of which task it is, which way is worse, and whether a gate looks at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm.tasks.answer_metrics import exact_match, vqa_accuracy
from edgemm.tasks.boxes import from_text, mean_average_precision
from edgemm.tasks.caption_metrics import bleu, caption_tokens, rouge_l, tokenized
from edgemm.tasks.cider import cider
from edgemm.tasks.liking import ranking_metrics
from edgemm.tasks.metrics import Scores, top1, wer


@dataclass(frozen=True)
class Metric:
    """`worse` is +1 where more is worse. One that does not `decide` is told beside one that does."""

    worse: float = -1.0
    decides: bool = True


METRICS: dict[str, Metric] = {
    "wer": Metric(worse=1.0),
    "top1": Metric(),
    "map": Metric(),
    "map50": Metric(decides=False),
    "recall@10": Metric(decides=False),
    "ndcg@10": Metric(),
    "cider": Metric(),
    "bleu4": Metric(decides=False),
    "rouge_l": Metric(),  # decides too: of a single picture CIDEr is 0 whatever is said
    "describe_cider": Metric(),
    "describe_exact_match": Metric(decides=False),
    "exact_match": Metric(decides=False),
    "vqa_accuracy": Metric(),
}


def measured(task: str, expected: Sequence[Any], said: Sequence[str]) -> dict[str, Scores]:
    """The metrics of a task in percent, CIDEr times 100.

    `expected` are texts, for captions and answers a sequence of texts each; boxes and likings are written out by
    `boxes.as_text` and `liking.as_text`, and so is what is `said` of boxes.
    """
    return _MEASURES[task](expected, said)


def drops(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much worse every metric of `after` is, in points."""
    return {n: round(METRICS[n].worse * (after[n] - before[n]), 4) + 0.0 for n in after}


def _boxes(expected: Sequence[str], said: Sequence[str]) -> dict[str, Scores]:
    found = mean_average_precision([from_text(e) for e in expected], [from_text(s) for s in said])
    return {name: Scores(value) for name, value in found.items()}


def _captions(expected: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, Scores]:
    both = tokenized(expected), [caption_tokens(text) for text in said]
    return {"cider": cider(*both), "bleu4": bleu(*both)[3], "rouge_l": rouge_l(*both)}


_MEASURES: dict[str, Callable[[Sequence[Any], Sequence[str]], dict[str, Scores]]] = {
    "transcribe": lambda expected, said: {"wer": Scores(wer(expected, said))},
    "classify": lambda expected, said: {"top1": Scores(top1(expected, said))},
    "recommend": lambda expected, said: {n: Scores(v) for n, v in ranking_metrics(expected, said).items()},
    "detect": _boxes,
    "caption": _captions,
    "describe": lambda expected, said: {
        "describe_cider": _captions(expected, said)["cider"],
        "describe_exact_match": exact_match(expected, said),
    },
    "answer": lambda expected, said: {
        "exact_match": exact_match(expected, said),
        "vqa_accuracy": vqa_accuracy(expected, said),
    },
}
