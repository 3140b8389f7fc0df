"""Frambicus, the project's own small multimodal model: sees, hears, reads; captions, answers, describes, finds, ranks.

    from edgemm.export.frambicus import FrambicusForImageCaptioning, FrambicusProcessor
    model, processor = (c.from_pretrained("frambicus") for c in (FrambicusForImageCaptioning, FrambicusProcessor))
    ids = model.generate(**processor(images=[picture], task="caption"), max_new_tokens=32)

Importing this package tells transformers' Auto classes about it. `scenes` makes its data.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSpeechSeq2Seq,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
)

from edgemm.export.frambicus.building import from_towers, processor_of
from edgemm.export.frambicus.configuration import FrambicusConfig
from edgemm.export.frambicus.heads import (
    FrambicusForDetection,
    FrambicusForImageCaptioning,
    FrambicusForQuestionAnswering,
    FrambicusForRecommendation,
    FrambicusForSpeechRecognition,
    FrambicusForVideoDescription,
)
from edgemm.export.frambicus.modeling import FrambicusModel
from edgemm.export.frambicus.outputs import FrambicusOutput
from edgemm.export.frambicus.pretraining import FrambicusForPreTraining
from edgemm.export.frambicus.processing import FrambicusImageProcessor, FrambicusProcessor
from edgemm.export.frambicus.stages import STAGES, freeze, own_parameters
from edgemm.export.frambicus.tokenization import FrambicusTokenizer

__all__ = [
    "FrambicusConfig",
    "FrambicusForDetection",
    "FrambicusForImageCaptioning",
    "FrambicusForPreTraining",
    "FrambicusForQuestionAnswering",
    "FrambicusForRecommendation",
    "FrambicusForSpeechRecognition",
    "FrambicusForVideoDescription",
    "FrambicusImageProcessor",
    "FrambicusModel",
    "FrambicusOutput",
    "FrambicusProcessor",
    "FrambicusTokenizer",
    "STAGES",
    "freeze",
    "from_towers",
    "own_parameters",
    "processor_of",
]

AutoConfig.register(FrambicusConfig.model_type, FrambicusConfig, exist_ok=True)
AutoTokenizer.register(FrambicusConfig, FrambicusTokenizer, exist_ok=True)
AutoImageProcessor.register(FrambicusConfig, FrambicusImageProcessor, exist_ok=True)
AutoProcessor.register(FrambicusConfig, FrambicusProcessor, exist_ok=True)
for _auto, _class in (
    (AutoModel, FrambicusModel),
    (AutoModelForImageTextToText, FrambicusForImageCaptioning),
    (AutoModelForVisualQuestionAnswering, FrambicusForQuestionAnswering),
    (AutoModelForObjectDetection, FrambicusForDetection),
    (AutoModelForSpeechSeq2Seq, FrambicusForSpeechRecognition),
    (AutoModelForPreTraining, FrambicusForPreTraining),
):
    _auto.register(FrambicusConfig, _class, exist_ok=True)
