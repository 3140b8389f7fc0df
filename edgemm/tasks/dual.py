"""embed, retrieve and recommend: pictures, texts and sounds in one space, for encoders trained on pairs.

CLIP, SigLIP and CLAP have two towers; a tower alone (DINOv2, BERT) embeds and ranks its own kind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import NaFlexSpec, SimilaritySpec
from edgemm.errors import InputError
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.features import prepare
from edgemm.processing.image import preprocess
from edgemm.processing.naflex import naflex
from edgemm.processing.text import Tokenizer
from edgemm.results import Embedding, RankedItem, Ranking
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs

Vectors = NDArray[np.float32]

_FEATURES = {
    "vision_encoder": "image_features",
    "audio_encoder": "audio_features",
    "text_encoder": "text_features",
}
_KINDS = {"vision_encoder": "pictures", "audio_encoder": "sounds", "text_encoder": "texts"}


class DualEncoder:
    """The towers of one model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        processing = graphs.entry.processing
        self._graphs, self._processing = graphs, processing
        self.similarity = processing.similarity or SimilaritySpec()
        self._tokenizer: Tokenizer | None = None
        if processing.text is not None:
            self._tokenizer = Tokenizer(graphs.bundle.file(processing.text.tokenizer), processing.text)
            self._tokenizer.cut_at(self.similarity.text_tokens)

    @property
    def reads(self) -> bool:
        """Whether it embeds texts."""
        return self._tokenizer is not None

    @property
    def sees_or_hears(self) -> bool:
        """Whether it embeds pictures or sounds."""
        return self._processing.image is not None or self._processing.audio is not None

    def embed(
        self, image: Any = None, *, text: str | None = None, audio: Any = None, sample_rate_hz: int = 16_000
    ) -> Embedding:
        """Where one picture, one text or one sound lies. Raises InputError unless exactly one is given."""
        start = time.perf_counter()
        given = [x for x in (image, text, audio) if x is not None]
        if len(given) != 1:
            raise InputError(f"{len(given)} things to embed: expected one of a picture, a text and a sound")
        if text is not None:
            vector = self.texts([text])[0]
        else:
            vector = self.image(image) if audio is None else self.audio(audio, sample_rate_hz)
        return Embedding(vector, (time.perf_counter() - start) * 1e3)

    def rank(self, query: Any, items: Sequence[Any], *, top: int | None = None) -> Ranking:
        """`items` by the cosine of their embeddings to the query's.

        The query and every item are a text (`str`), a picture (an array, a PIL image, a `pathlib.Path`), a sound
        (samples, sample_rate_hz), or an `Embedding` (or its values). A list as query stands for the mean of its
        members: what someone liked, say.
        """
        start = time.perf_counter()
        if not len(items):
            raise InputError("there are no items to rank")
        wanted = list(query) if isinstance(query, list) else [query]
        if not wanted:
            raise InputError("the query is empty")
        target = unit(self.vectors(wanted).mean(axis=0))
        scores = self.vectors(items) @ target
        best = np.argsort(-scores, kind="stable")[:top]
        ranked = tuple(RankedItem(int(i), items[int(i)], round(float(scores[i]), 6)) for i in best)
        return Ranking(ranked, (time.perf_counter() - start) * 1e3)

    def vectors(self, things: Sequence[Any]) -> Vectors:
        """Unit vectors [N, D] of texts, pictures, sounds and embeddings; see `rank`."""
        places = [i for i, x in enumerate(things) if isinstance(x, str)]
        found = dict(zip(places, self.texts([things[i] for i in places]), strict=True)) if places else {}
        rows = [found[i] if i in found else self._vector(x) for i, x in enumerate(things)]
        if len({len(row) for row in rows}) > 1:
            raise InputError(f"embeddings of {sorted({len(r) for r in rows})} numbers cannot be compared")
        return np.stack(rows)

    def _vector(self, thing: Any) -> Vectors:
        if isinstance(thing, Embedding):
            return unit(thing.values)
        if isinstance(thing, np.ndarray) and thing.ndim == 1 and thing.dtype.kind == "f":
            return unit(thing)
        if isinstance(thing, tuple) and len(thing) == 2:
            return self.audio(thing[0], int(thing[1]))
        return self.image(thing)

    def image(self, image: Any) -> Vectors:
        """Unit vector [D] of one picture."""
        spec = self._processing.image
        if spec is None:
            raise self._cannot("pictures")
        if isinstance(spec, NaFlexSpec):
            return unit(self._run("vision_encoder", naflex(image, spec))[0])
        return unit(self._run("vision_encoder", {"pixel_values": preprocess(image, spec).pixel_values})[0])

    def audio(self, samples: Any, sample_rate_hz: int) -> Vectors:
        """Unit vector [D] of one sound."""
        spec = self._processing.audio
        if spec is None:
            raise self._cannot("sounds")
        made = prepare(to_mono_16k(samples, sample_rate_hz, spec.sample_rate_hz), spec)
        return unit(self._run("audio_encoder", {made.name: made.values})[0])

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] of texts; what does not fit the model is cut."""
        if self._tokenizer is None:
            raise self._cannot("texts")
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if empty:
            raise InputError(f"text {empty[0]} is empty")
        ids = [self._ids(text.lower() if self.similarity.lower_case else text) for text in texts]
        size = self._graphs.dims_of("text_encoder", "input_ids")[0]
        batches = [padded(ids[i : i + size], self.similarity) for i in range(0, len(ids), size)]
        takes, beside = self._graphs.inputs_of("text_encoder"), self._beside()
        rows = [self._run("text_encoder", {k: v for k, v in batch.items() if k in takes} | beside) for batch in batches]
        return unit(np.concatenate(rows))

    def _ids(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        return self._tokenizer.encode(text)

    def _beside(self) -> dict[str, Any]:
        """What the text encoder takes beside texts."""
        return {}

    def warm_up(self) -> None:
        """Load every graph and run it once."""
        if self._processing.image is not None:
            self.image(np.zeros((32, 32, 3), np.uint8))
        if self._processing.audio is not None:
            self.audio(np.zeros(16_000, np.float32), 16_000)
        if self._tokenizer is not None:
            self.texts(["a"])

    def _run(self, role: str, feeds: Any) -> Vectors:
        return as_numpy(self._graphs.session(role).run(feeds)[_FEATURES[role]]).astype(np.float32)

    def _cannot(self, kind: str) -> InputError:
        known = [_KINDS[role] for role in self._graphs.entry.components if role in _KINDS]
        return InputError(f"{self._graphs.entry.name} cannot embed {kind}: it knows {', '.join(known)}")


def unit(vectors: NDArray[Any]) -> Vectors:
    """Vectors [..., D] at length 1."""
    values = np.asarray(vectors, np.float32)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def padded(ids: Sequence[Sequence[int]], spec: SimilaritySpec) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, both [B, S], of texts that are cut already."""
    length = spec.text_tokens if spec.pad_texts else max(map(len, ids))
    table = np.full((len(ids), length), spec.pad, np.int64)
    mask = np.zeros_like(table)
    for row, one in enumerate(ids):
        place = slice(0, len(one)) if spec.padding_side == "right" else slice(length - len(one), length)
        table[row, place], mask[row, place] = one, 1
    return {"input_ids": table, "attention_mask": mask}
