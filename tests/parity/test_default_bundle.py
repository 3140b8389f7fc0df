"""The default bundle against the same weights in transformers fp32: real speech, real pictures. Slow tier."""

import dataclasses

import numpy as np
import pytest
import torch

import edgemm
from edgemm.export import families
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.frambicus import FrambicusModel, FrambicusProcessor
from edgemm.export.model_plan import Example
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.processing.image import to_rgb
from edgemm.tasks.metrics import wer
from tests.rig.pictures import kinds, real_pictures
from tests.rig.speech import flite_corpus, librivox_clips

pytestmark = pytest.mark.slow

MAX_WER_LOSS_POINTS = 0.7
MAX_RUNTIME_DIFFERENCE_PERCENT = 0.5
MIN_TOP1_PERCENT = 97.0
MARGIN = 0.1
WORDS = 2000
RUNTIMES = ("onnxruntime", "openvino")


@dataclasses.dataclass
class Speech:
    samples: list[np.ndarray]
    said: list[str]
    original: list[str]


@pytest.fixture(scope="module")
def speech(tmp_path_factory, repository) -> Speech:
    clips = librivox_clips() + flite_corpus(tmp_path_factory.mktemp("speech"), WORDS)
    samples = [to_mono_16k(*load_audio(path)) for path, _ in clips]
    plan = families.find("moonshine").plan(find_checkpoint(repository / "samples/checkpoint/speech"))
    with edgemm.load(runtime="onnxruntime") as model:
        decode = model.task("transcribe").tokenizer.decode
        original = [decode(list(plan.reference(Example(audio=s)).tokens)) for s in samples]
    return Speech(samples, [text for _, text in clips], original)


@pytest.fixture(scope="module")
def heard(speech) -> dict[tuple[str, bool | None], list[str]]:
    """By runtime and whether it computes exactly (None: as it does where nothing is said)."""
    texts = {}
    for runtime in RUNTIMES:
        for exact in (None, True):
            with edgemm.load(runtime=runtime, exact=exact) as model:
                texts[runtime, exact] = [model.transcribe(s).text for s in speech.samples]
    return texts


@pytest.mark.parametrize("exact", [None, True], ids=["fast", "exact"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_hears_as_well_as_fp32(speech, heard, runtime, exact, record_property):
    before, after = wer(speech.said, speech.original), wer(speech.said, heard[runtime, exact])
    unlike = wer(speech.original, heard[runtime, exact])
    record_property("wer", {"fp32": before, runtime: after})
    print(f"WER fp32 {before:.2f}, int8 on {runtime} {after:.2f}; {unlike:.2f} % of the words unlike fp32's")
    assert after <= before + MAX_WER_LOSS_POINTS


def test_runtimes_hear_the_same(heard):
    difference = wer(heard["onnxruntime", True], heard["openvino", True])
    print(f"words that differ between runtimes: {difference:.2f} %")
    assert difference <= MAX_RUNTIME_DIFFERENCE_PERCENT


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_sees_what_fp32_sees(tmp_path, repository, runtime):
    pictures = real_pictures(tmp_path, 400)
    place = repository / "samples/checkpoint/frambicus"
    original, processor = FrambicusModel.from_pretrained(place), FrambicusProcessor.from_pretrained(place)
    with edgemm.load(runtime=runtime) as model:
        task = model.task("classify")
        sure, wrong = 0, []
        for path in pictures:
            image = to_rgb(path)
            with torch.no_grad():
                seen = original.see(**processor.look([image]))
            fp32 = seen.probabilities[0, 0, -1].numpy()
            second, first = np.sort(fp32)[-2:]
            if first - second <= MARGIN:
                continue
            sure += 1
            int8 = task.probabilities(image)
            if int8.argmax() != fp32.argmax():
                wrong.append((path.name, task.names[fp32.argmax()], task.names[int8.argmax()]))
    print(f"{kinds(pictures)}: {sure} sure, disagreements on {runtime}: {wrong}")
    assert sure >= 200
    assert 100 * (1 - len(wrong) / sure) >= MIN_TOP1_PERCENT, wrong
