"""Moonshine tiny-en with its real weights in int4 against fp32, rounded with and without examples. Slow tier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.export.pipeline import export
from edgemm.model import Model
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.processing.features import raw
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions, state_port
from edgemm.tasks.metrics import wer
from tests.rig.speech import flite_corpus, librivox_clips

pytestmark = pytest.mark.slow

WORDS = 250
MAX_WER_LOSS_POINTS = 2.0
RUNTIMES = ("onnxruntime", "openvino")
WAYS = {"fp32": ("fp32", False), "nearest": ("int4", False), "corrected": ("int4", True)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, repository) -> dict[str, Path]:
    place, clip = tmp_path_factory.mktemp("moonshine"), repository / "samples" / "clip" / "clip.mp4"
    for name, (precision, calibrated) in WAYS.items():
        export(
            repository / "samples" / "checkpoint" / "speech",
            place / name,
            precision=precision,
            calibrate_on=[clip] if calibrated else [],
        )
    return {name: place / name for name in WAYS}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    found = librivox_clips() + flite_corpus(tmp_path_factory.mktemp("speech"), WORDS)
    return [to_mono_16k(*load_audio(path)) for path, _ in found], [text for _, text in found]


@pytest.fixture(scope="module")
def heard(bundles, clips):
    """What fp32 hears: cross keys and values, and token ids with their start."""
    found = []
    with Model(open_bundle(bundles["fp32"]), runtime="onnxruntime") as model:
        (entry,) = model.bundle.manifest.models
        encoder = registry.module("onnxruntime").load_session(
            model.bundle.file(model.bundle.component(entry, "audio_encoder").file), SessionOptions()
        )
        for samples in clips[0]:
            made = encoder.run({"input_values": raw(samples, entry.processing.audio).values})
            ids = [entry.tokens.decoder_start, *model.transcribe(samples).tokens]
            found.append(({k: v for k, v in made.items() if k.startswith("cross.")}, ids))
        encoder.close()
    return found


def forced(directory, heard, runtime):
    """Log-probabilities of every token after those that fp32 said, [tokens, V]."""
    bundle = open_bundle(directory)
    (entry,) = bundle.manifest.models
    component = bundle.component(entry, "decoder")
    options = SessionOptions(int8_weights=component.precision != "fp32")
    states = tuple(map(state_port, bundle.manifest.states_of(component.name)))
    decoder = registry.module(runtime).load_decoder(bundle.file(component.file), states, entry.context, options)
    embed = registry.module(runtime).load_session(
        bundle.file(bundle.component(entry, "embed_tokens").file), SessionOptions()
    )
    rows = []
    for cross, ids in heard:
        decoder.reset()
        embeds = embed.run({"input_ids": np.array([ids])})["inputs_embeds"]
        rows.append(decoder.prefill(embeds, cross=cross, logits_indices=np.arange(len(ids)))[0])
    decoder.close()
    embed.close()
    logits = np.concatenate(rows).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rounding_by_examples_is_nearer_to_fp32(bundles, heard, runtime):
    whole, nearest, corrected = (forced(bundles[name], heard, runtime) for name in WAYS)
    far = [float((np.exp(whole) * (whole - other)).sum(1).mean()) for other in (nearest, corrected)]
    same = [float((whole.argmax(1) == other.argmax(1)).mean()) for other in (nearest, corrected)]
    print(f"{runtime}: KL {far[0]:.4f} → {far[1]:.4f}, same choice {same[0]:.3f} → {same[1]:.3f} of {len(whole)}")
    assert far[1] < 0.75 * far[0]
    assert same[1] > same[0]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_hears_nearly_as_well(bundles, clips, runtime):
    samples, said = clips
    errors = {}
    for name in WAYS:
        with Model(open_bundle(bundles[name]), runtime=runtime) as model:
            errors[name] = wer(said, [model.transcribe(s).text for s in samples])
    print(f"{runtime}: WER {errors}")
    assert errors["corrected"] <= errors["fp32"] + MAX_WER_LOSS_POINTS
