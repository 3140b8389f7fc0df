"""Detectors: the bundle against transformers, from the encoder's proposals to boxes in pixels."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from edgemm.export.detectors import TopKDetector, as_rows, without_checks
from edgemm.export.graph import GraphPlan, Port, trace
from edgemm.export.verify import TOLERANCES, aligned, compare
from edgemm.runtimes import registry
from edgemm.runtimes.base import as_numpy
from edgemm.runtimes.lowering.pairing import paired
from edgemm.tasks.boxes import Box, mean_average_precision
from tests.export.exported import EXACT, RUNTIMES, checkpoint, exported, model, picture, plan
from tests.tiny.detectors import LABELS, SIDE_PX, scene

NAMES = ("detr", "detr_learned", "rt_detr", "rt_detr_v2", "d_fine", "yolos", "yolos_plain")
TOP_K = ("rt_detr", "rt_detr_v2", "d_fine")
SIZES = [(64, 64), (31, 33), (40, 61), (50, 40), (7, 10), (90, 61), (120, 200), (333, 222)]
TOLERANCE = 1e-4
BOX_TOLERANCE_PX = 0.1
SWAPPED = 100 * TOLERANCE


@functools.cache
def original(name):
    path = checkpoint(name)
    loaded = AutoModelForObjectDetection.from_pretrained(path, dtype=torch.float32)
    return loaded.eval(), AutoImageProcessor.from_pretrained(path, use_fast=False)


def asked(name, image):
    """The original on the picture as its own processor makes it: no canvas, no neighbours."""
    network, processor = original(name)
    inputs = processor(image, return_tensors="pt", input_data_format="channels_last")
    if network.config.model_type != "detr":
        inputs.pop("pixel_mask", None)
    with torch.no_grad():
        return network(**inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NAMES)
def test_every_query_equals_the_original(name, runtime):
    """On a canvas or stretched, at any size: the same rows as the original on the picture alone."""
    with model(name, runtime) as bundle:
        task = bundle.task("detect")
        scoring = bundle.bundle.manifest.models[0].processing.functions["detect"]
        rows = []
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            found = asked(name, image)
            want = as_rows(found.logits[0].numpy(), found.pred_boxes[0].numpy(), scoring)
            rows.append(task.rows(image))
            pair = paired(want, rows[-1]) if name in TOP_K else (want, rows[-1])
            np.testing.assert_allclose(pair[1], pair[0], atol=TOLERANCE, err_msg=str(size))
        assert np.abs(rows[0] - rows[1]).max() > SWAPPED


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["detr", "rt_detr", "d_fine", "yolos"])
def test_objects_equal_the_originals_post_processing(name, runtime):
    _, processor = original(name)
    told = 0
    with model(name, runtime) as bundle:
        for seed, size in enumerate(SIZES):
            image = picture(*size, seed=seed)
            (want,) = processor.post_process_object_detection(asked(name, image), 0.4, target_sizes=[size])
            made = bundle.detect(image, score_min=0.4).objects
            assert len(made) == len(want["scores"])
            assert [o.score for o in made] == sorted((o.score for o in made), reverse=True)
            rows = [[LABELS.index(o.label), o.score, *o.box_px] for o in made]
            target = torch.cat([want["labels"][:, None], want["scores"][:, None], want["boxes"]], 1).numpy()
            told += len(rows)
            if rows:
                a, b = paired(target, np.array(rows))
                np.testing.assert_allclose(b, a, atol=BOX_TOLERANCE_PX)
    assert told > 5


def test_the_canvas_never_shows():
    """What lies on the canvas beside the picture moves nothing, even if it is not zero; the mask itself does."""
    graph = plan("detr").graphs[0]
    feeds = graph.feeds({"batch": 2}, seed=3)
    before = graph.run(feeds)
    outside = (feeds["pixel_mask"] == 0)[:, None].expand_as(feeds["pixel_values"])
    assert outside.any()
    noise = torch.randn(feeds["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    after = graph.run(feeds | {"pixel_values": torch.where(outside, 9 * noise, feeds["pixel_values"])})
    assert compare(before, after)[0] <= TOLERANCE
    whole = graph.run(feeds | {"pixel_mask": torch.ones_like(feeds["pixel_mask"])})
    assert compare(before, whole)[0] > SWAPPED


class Proposals(TopKDetector):
    """Also what the encoder says of every place, before any is picked."""

    def forward(self, feeds):
        with without_checks(self.detector):
            found = self.detector(feeds["pixel_values"])
        return found.enc_outputs_class, found.enc_outputs_coord_logits


@pytest.mark.parametrize("name", TOP_K)
def test_scores_before_the_choice_equal_the_original(name, tmp_path):
    """Every place's scores and boxes, which no tie can swap."""
    graph = plan(name).graphs[0]
    places = sum((SIDE_PX // stride) ** 2 for stride in (8, 16, 32))
    half: GraphPlan = replace(
        graph,
        module=Proposals(graph.module.detector),
        outputs=(
            Port("scores", torch.float32, ("batch", places, len(LABELS))),
            Port("boxes", torch.float32, ("batch", places, 4)),
        ),
        unordered=False,
    )
    onnx.save(trace(half), tmp_path / "half.onnx")
    feeds = half.feeds({"batch": 3}, seed=5)
    want = half.run(feeds)
    for runtime in RUNTIMES:
        session = registry.module(runtime).load_session(tmp_path / "half.onnx", EXACT)
        found = {k: as_numpy(v) for k, v in session.run({k: v.numpy() for k, v in feeds.items()}).items()}
        worst, cosine = compare(want, found)
        assert worst <= TOLERANCES["fp32"].max_abs
        assert cosine >= TOLERANCES["fp32"].cosine
        session.close()


def test_rows_are_paired_in_any_order():
    graph = plan("rt_detr").graphs[0]
    want = graph.run(graph.feeds({"batch": 2}))
    order = np.random.default_rng(0).permutation(want["logits"].shape[1])
    shuffled = {name: value[:, order] for name, value in want.items()}
    assert compare(want, shuffled)[0] > SWAPPED
    assert compare(*aligned(graph, want, shuffled))[0] == 0
    shuffled["logits"][0, 0] += 1
    assert compare(*aligned(graph, want, shuffled))[0] > 0.1
    assert compare(*aligned(graph, want, shuffled, spare=0.1))[0] == 0


@pytest.fixture(scope="module")
def held_out():
    rng = np.random.default_rng(99)
    return [scene(rng) for _ in range(40)]


def _map(held_out, found):
    truth = [[Box(LABELS[k], b) for b, k in zip(s.boxes, s.labels, strict=True)] for s in held_out]
    return mean_average_precision(truth, found)["map"]


def _original_map(held_out):
    _, processor = original("rt_detr_trained")

    def detect(image):
        target = [image.shape[:2]]
        (found,) = processor.post_process_object_detection(asked("rt_detr_trained", image), 0.001, target_sizes=target)
        rows = zip(found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), strict=True)
        return [Box(LABELS[k], tuple(b), s) for k, b, s in rows]

    return _map(held_out, [detect(s.image) for s in held_out])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_trained_detector_detects_as_the_original(held_out, precision):
    want = _original_map(held_out)
    assert want >= 50
    for runtime in RUNTIMES:
        with model("rt_detr_trained", runtime, precision) as bundle:
            said = [bundle.detect(s.image, score_min=0.001).objects for s in held_out]
        boxes = [[Box(o.label, o.box_px, o.score) for o in objects] for objects in said]
        assert _map(held_out, boxes) == pytest.approx(want, abs=0.5 if precision == "fp32" else 5.0)


def test_int8_leaves_decoder_and_heads_alone():
    report = exported("rt_detr_trained", "int8")
    graph = onnx.load(report.bundle / "graphs" / "model.onnx", load_external_data=False).graph
    quantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    inside = [n for n in graph.node if n.name.startswith(("detector.model.decoder", "detector.model.enc_"))]
    outside = [n for n in graph.node if n.name.startswith(("detector.model.backbone", "detector.model.encoder."))]
    assert sum(n.op_type in ("MatMul", "Gemm") for n in inside) > 10
    assert not [n.name for n in inside if quantized & set(n.input)]
    assert sum(bool(quantized & set(n.input)) for n in outside if n.op_type == "Conv") > 20
    excluded = report.manifest.quantization.excluded
    assert {note.node for note in excluded} >= {"detector.model.decoder*", "detector.model.enc_*"}
