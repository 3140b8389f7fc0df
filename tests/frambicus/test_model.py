"""Shapes, senses that are absent, the speech tower untouched."""

import pytest
import torch

from edgemm.errors import InputError, UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.frambicus import (
    FrambicusConfig,
    FrambicusForDetection,
    FrambicusForRecommendation,
    FrambicusForSpeechRecognition,
    FrambicusModel,
    freeze,
    own_parameters,
)
from edgemm.export.loading import from_pretrained
from tests.frambicus.small import noise, tiny

IDS = torch.tensor([[1, 278, 6635, 32001], [1, 822, 322, 32001], [1, 263, 1049, 32001]])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("sound", [0, 4000, 1601])
def test_logits_over_awkward_sizes(model, grids, batch, frames, sound):
    shown = [grid[:batch, :frames] for grid in grids]
    heard = {"input_values": torch.randn(batch, sound)} if sound else {}
    with torch.no_grad():
        out = model(input_ids=IDS[:batch], grids=shown, **heard)
    assert out.logits.shape == (batch, 4, 32_768)
    assert out.memory.shape[:2] == out.memory_mask.shape
    assert out.logits.isfinite().all()


def test_pixels_give_what_their_cached_grids_give(model):
    pixels = noise(2)
    with torch.no_grad():
        direct = model(input_ids=IDS[:2], pixel_values=pixels)
        cached = model(input_ids=IDS[:2], grids=model.vision.grids(pixels))
        clip = model(input_ids=IDS[:2], pixel_values=pixels[:, None])
    assert torch.equal(direct.logits, cached.logits)
    assert torch.equal(direct.logits, clip.logits)


def test_no_picture_and_wrong_pictures(model):
    with torch.no_grad():
        heard = model(input_ids=IDS, input_values=torch.randn(3, 3200))
        alone = model(input_ids=IDS)
    assert heard.logits.shape == alone.logits.shape
    assert not torch.allclose(heard.logits, alone.logits)
    with pytest.raises(InputError, match="expected pixel_values"):
        model.see(torch.zeros(3, 224, 224))


def test_a_row_without_a_sense_is_as_if_it_were_alone(model, grids):
    sound = torch.randn(2, 8000)
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1] = 0
    shown = [grid[:2] for grid in grids]
    frame_mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    with torch.no_grad():
        both = model(input_ids=IDS[:2], grids=shown, frame_mask=frame_mask, input_values=sound, input_values_mask=mask)
        deaf = model(input_ids=IDS[1:2], grids=[grid[1:2] for grid in grids])
        blind = model(input_ids=IDS[:1], input_values=sound[:1])
    torch.testing.assert_close(both.logits[1:], deaf.logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(both.logits[:1], blind.logits, atol=2e-5, rtol=1e-4)


def test_frames_that_only_fill_up_change_nothing(model, grids):
    times = torch.tensor([[0.0, 0.7, 99.0]])
    with torch.no_grad():
        padded = model(
            input_ids=IDS[:1],
            grids=[grid[:1] for grid in grids],
            frame_times_s=times,
            frame_mask=torch.tensor([[1, 1, 0]]),
        )
        cut = model(input_ids=IDS[:1], grids=[grid[:1, :2] for grid in grids], frame_times_s=times[:, :2])
    torch.testing.assert_close(padded.logits, cut.logits, atol=2e-5, rtol=1e-4)


def test_time_counts_from_the_newest_frame_and_matters(model, grids):
    shown = [grid[:1] for grid in grids]

    def logits(*times):
        with torch.no_grad():
            return model(input_ids=IDS[:1], grids=shown, frame_times_s=torch.tensor([times])).logits

    torch.testing.assert_close(logits(0.0, 0.5, 1.0), logits(64.0, 64.5, 65.0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(0.0, 0.5, 1.0), logits(0.0, 2.5, 3.0), atol=1e-4)


@pytest.mark.parametrize("kind", ["resampler", "qformer", "grid"])
def test_every_connector_sees(kind, grids):
    model = tiny(FrambicusModel, connector_config={"kind": kind})
    with torch.no_grad():
        sight = model.see(grids=[grid[:2] for grid in grids])
    tokens = 3 * 49 if kind == "grid" else 6
    assert sight.visual.shape == (2, tokens, 288)
    assert (sight.visual[0] - sight.visual[1]).abs().max() > 1e-3


def test_an_unknown_connector_is_refused():
    with pytest.raises(UsageError, match="resampler, qformer, grid"):
        FrambicusConfig(connector_config={"kind": "wire"})


def test_transcription_is_the_speech_models_bit_for_bit(repository):
    original = from_pretrained(_moonshine(), find_checkpoint(repository / "samples/checkpoint/speech"))
    model = tiny(FrambicusForSpeechRecognition)
    values = torch.randn(2, 9000) * 0.1
    ids = torch.tensor([[1, 450, 4996], [1, 263, 3654]])
    with torch.no_grad():
        want = original(input_values=values, decoder_input_ids=ids).logits
        assert torch.equal(model(values, decoder_input_ids=ids).logits, want)
        assert torch.equal(model.transcribe(values, decoder_input_ids=ids).logits, want)
    said = original.generate(input_values=values, max_new_tokens=4)
    assert torch.equal(model.generate(values), said)


def _moonshine():
    from transformers import MoonshineForConditionalGeneration

    return MoonshineForConditionalGeneration


def test_eager_attention_says_what_sdpa_says(model, grids):
    shown = [grid[:2] for grid in grids]
    with torch.no_grad():
        fused = model(input_ids=IDS[:2], grids=shown).logits
        model.set_attn_implementation("eager")
        try:
            plain = model(input_ids=IDS[:2], grids=shown).logits
        finally:
            model.set_attn_implementation("sdpa")
    torch.testing.assert_close(plain, fused, atol=2e-5, rtol=1e-4)


def test_the_newest_frame_is_what_is_searched(grids):
    model = tiny(FrambicusForDetection)
    with torch.no_grad():
        clip = model(grids=[grid[:2] for grid in grids], frame_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
        last = model(grids=[torch.stack((grid[0, 2], grid[1, 1])) for grid in grids])
    assert clip.logits.shape == (2, 49, 4)
    assert clip.pred_boxes.shape == (2, 49, 4)
    torch.testing.assert_close(clip.pred_boxes, last.pred_boxes)


def test_embeddings_have_length_one(grids):
    model = tiny(FrambicusForRecommendation)
    with torch.no_grad():
        out = model(IDS, grids=[grid[:3] for grid in grids], return_loss=True)
        longer = model(torch.cat((IDS, IDS[:, :2]), dim=1), torch.tensor([[1, 1, 1, 1, 0, 0]] * 3))
    torch.testing.assert_close(out.image_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(longer.text_embeds, out.text_embeds, atol=1e-5, rtol=1e-4)
    assert out.logits.shape == (3, 3)
    assert out.loss.isfinite()


def test_stages_are_patterns_over_names():
    model = tiny(FrambicusModel)
    frozen = freeze(model, "towers", "text.layers.0.*")
    left = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("vision.", "speech.", "text.layers.0.")) for n in left)
    assert {*frozen, *left} == {n for n, _ in model.named_parameters()}
    freeze(model, "vision", frozen=False)
    assert model.vision.classifier.weight.requires_grad
    model.train()
    assert not model.vision.training
    with pytest.raises(UsageError, match="no stage tower"):
        freeze(model, "tower")


def test_the_shipped_parts_are_small():
    torch.manual_seed(0)
    model = FrambicusModel.from_towers(labels=[str(i) for i in range(250)])
    assert own_parameters(model) - sum(p.numel() for p in model.reconstructor.parameters()) < 9e6


def test_what_is_told_stands_for_what_is_found(model, grids):
    shown = [grid[:2, :1] for grid in grids]
    told = {
        1: {"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.9, 0.1, 0.1, 0.1]])}
    }
    with torch.no_grad():
        found, corrected = model.see(grids=shown), model.see(grids=shown, told=told)
    assert torch.equal(found.finds[0], corrected.finds[0])
    assert not torch.equal(found.finds[1], corrected.finds[1])
    assert torch.equal(found.found.logits, corrected.found.logits), "the detector learns from what it said itself"
    seen = corrected.found.corrected(told, (7, 7))
    there = (seen.logits[1].argmax(-1) != len(model.config.detector_config.id2label)).nonzero()[:, 0]
    assert there.tolist() == [6, 24]  # the cells of the two middles, row by row
    assert seen.logits[1, there].argmax(-1).tolist() == [0, 2]
    torch.testing.assert_close(seen.boxes[1, there], told[1]["boxes"].flip(0))
