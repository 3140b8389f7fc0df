"""edgemm: a fine-tuned multimodal model, from its training checkpoint to a robot.

    import edgemm
    model = edgemm.load()                       # the embedded default bundle, or a path
    model.classify("cup.jpg").labels[0]         # Label(label='espresso', score=0.95)
    model.transcribe(samples, sample_rate_hz=16_000).text

Nothing heavy is imported here: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "edgemm.model",
    "Model": "edgemm.model",
    "stream": "edgemm.live.stream",
    "Stream": "edgemm.live.stream",
    "open_bundle": "edgemm.bundle.opening",
    "EdgemmError": "edgemm.errors",
    "Generation": "edgemm.decoding.options",
    "Conversation": "edgemm.tasks.conversation",
    "Answer": "edgemm.results",
    "Caption": "edgemm.results",
    "DetectedObject": "edgemm.results",
    "Detections": "edgemm.results",
    "Embedding": "edgemm.results",
    "Label": "edgemm.results",
    "Labels": "edgemm.results",
    "RankedItem": "edgemm.results",
    "Ranking": "edgemm.results",
    "Region": "edgemm.results",
    "Segment": "edgemm.results",
    "Transcript": "edgemm.results",
}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from edgemm.bundle.opening import open_bundle as open_bundle
    from edgemm.decoding.options import Generation as Generation
    from edgemm.errors import EdgemmError as EdgemmError
    from edgemm.live.stream import Stream as Stream
    from edgemm.live.stream import stream as stream
    from edgemm.model import Model as Model
    from edgemm.model import load as load
    from edgemm.results import Answer as Answer
    from edgemm.results import Caption as Caption
    from edgemm.results import DetectedObject as DetectedObject
    from edgemm.results import Detections as Detections
    from edgemm.results import Embedding as Embedding
    from edgemm.results import Label as Label
    from edgemm.results import Labels as Labels
    from edgemm.results import RankedItem as RankedItem
    from edgemm.results import Ranking as Ranking
    from edgemm.results import Region as Region
    from edgemm.results import Segment as Segment
    from edgemm.results import Transcript as Transcript
    from edgemm.tasks.conversation import Conversation as Conversation


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edgemm' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
