"""The bundle of a small Frambicus over the repository's towers, beside voice activity: equal to the model in torch."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import soundfile
import torch

from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError, InputError
from edgemm.export import pipeline
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families import frambicus, moonshine
from edgemm.export.frambicus import FrambicusForDetection, FrambicusForQuestionAnswering, processor_of
from edgemm.export.frambicus.building import save_without_towers
from edgemm.export.graph import traced
from edgemm.export.pipeline import export
from edgemm.export.verify import TOLERANCES, compare
from edgemm.model import Model
from edgemm.processing.audio import load_audio
from edgemm.processing.memory import plain_question
from edgemm.runtimes import registry
from edgemm.runtimes.base import as_numpy
from edgemm.tasks import sight
from tests.cli.cli_runner import CLIP, Cli
from tests.export.exported import EXACT, RATE_HZ, RUNTIMES, picture
from tests.frambicus.small import LABELS, tiny

ROLES = ("vision_encoder", "grid_encoder", "decoder", "embed_tokens", "memory", "text_encoder")
SPEECH = ("audio_encoder", "decoder", "embed_tokens")
NEW = 12
SIZES = [(224, 224), (97, 480), (300, 211)]


@pytest.fixture(scope="module")
def model():
    """Its own weights as fp16 stores them, as the repository's checkpoint has them."""
    made = tiny(FrambicusForQuestionAnswering).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.split(".")[0] not in ("vision", "speech"):
                parameter.copy_(parameter.half())
    return made


@pytest.fixture(scope="module")
def processor():
    return processor_of()


@pytest.fixture(scope="module")
def checkpoint(model, processor, repository, tmp_path_factory):
    """The composite that the default checkpoint is to become: Frambicus without its towers, and voice activity."""
    root = tmp_path_factory.mktemp("checkpoint")
    for name in ("labels", "speech", "vad"):
        shutil.copytree(repository / "samples" / "checkpoint" / name, root / name)
    save_without_towers(model, root / "frambicus", "..")
    processor.save_pretrained(root / "frambicus")
    models = {"frambicus": "frambicus", "vad": "vad"}
    (root / "config.json").write_text(json.dumps({"model_type": "composite", "models": models}))
    return root


@pytest.fixture(scope="module")
def plan(checkpoint):
    found = find_checkpoint(checkpoint / "frambicus")
    return frambicus.plan(found)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return export(checkpoint, tmp_path_factory.mktemp("bundle") / "bundle").bundle


@pytest.fixture(scope="module", params=RUNTIMES)
def loaded(bundle, request):
    with Model(open_bundle(bundle), runtime=request.param, options=EXACT) as one:
        yield one


def said_by(model, processor, task, text, frames, times_s=None):
    """What torch generates greedily, up to the end."""
    images = [[processor.image_processor(f) for f in frames]]
    ids = torch.tensor([processor.tokenizer.prompt(task, text)])
    given = {"pixel_values": torch.from_numpy(np.array(images))} if frames else {}
    if times_s is not None:
        given["frame_times_s"] = torch.tensor([times_s])
    out = model.generate(ids, **given, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :].tolist()
    return tuple(out[: out.index(2)] if 2 in out else out)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("role", ROLES)
def test_every_component_equals_its_module(plan, bundle, role, runtime):
    graph = next(g for g in plan.graphs if g.role == role)
    session = registry.module(runtime).load_session(bundle / "graphs" / f"frambicus.{role}.onnx", EXACT)
    for seed, sizes in enumerate((graph.trace, *graph.checks)):
        feeds = graph.feeds(sizes, seed=100 + seed)
        found = session.run({k: v.numpy() for k, v in feeds.items()})
        worst, cosine = compare(graph.run(feeds), {k: as_numpy(v) for k, v in found.items()})
        assert worst <= TOLERANCES["fp32"].max_abs, sizes
        assert cosine >= TOLERANCES["fp32"].cosine, sizes
    session.close()


def test_the_manifest_says_what_it_can(bundle):
    manifest = open_bundle(bundle).manifest
    tasks = {m.name: m.tasks for m in manifest.models}
    assert tasks == {
        "frambicus": tuple(t for t in frambicus.TASKS if t != "transcribe"),
        "speech": ("transcribe",),
        "vad": ("voice_activity",),
    }
    assert manifest.source.tasks == (*frambicus.TASKS, "voice_activity")
    names = [f"frambicus.{role}" for role in ROLES] + [f"speech.{role}" for role in SPEECH] + ["vad.voice_activity"]
    assert [c.name for c in manifest.components] == names
    assert set(manifest.checks.tokens_equal.values()) == {1.0}
    checked = {(c.model, c.task) for c in manifest.checks.tasks}
    assert checked == {("frambicus", t) for t in frambicus.TASKS[:6]} | {("speech", "transcribe")}
    assert manifest.source.parameters == sum(m.source.parameters for m in manifest.models if m.name != "speech")


def test_what_is_shared_is_stored_once(bundle, model):
    manifest = open_bundle(bundle).manifest
    table = model.table.numel() * 4
    own = {c.name: c for c in manifest.components}
    readers = [own[f"frambicus.{r}"] for r in ("embed_tokens", "memory", "text_encoder")]
    readers += [own["speech.decoder"], own["speech.embed_tokens"]]
    assert all("graphs/frambicus.decoder.data" in c.weights for c in readers)
    assert own["frambicus.decoder"].bytes > table
    assert own["frambicus.text_encoder"].bytes < 1e6
    assert sum(f.bytes for f in manifest.files.values()) < 4 * manifest.source.parameters + 5e6
    assert [f for f in manifest.files if f.endswith("tokenizer.json")] == ["frambicus/tokenizer.json"]


@pytest.mark.parametrize("size", SIZES)
def test_captions_and_answers_are_torchs(loaded, model, processor, size):
    image = picture(*size, seed=4)
    assert loaded.caption(image, max_new_tokens=NEW).tokens == said_by(model, processor, "caption", "", [image])
    for question in ("why", "What color is the cup?", "is there a dog in the picture to the left of the boat?"):
        want = said_by(model, processor, "answer", plain_question(question), [image])
        assert loaded.answer(image, question, max_new_tokens=NEW).tokens == want
    assert want


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_clips_are_described_as_torch_does(loaded, model, processor, frames):
    clip = [picture(120, 160, seed=i) for i in range(frames)]
    times_s = [3.0 + 0.37 * i for i in range(frames)]
    want = said_by(model, processor, "describe", "", clip, times_s)
    assert loaded.describe(clip, times_s, max_new_tokens=NEW).tokens == want
    want = said_by(model, processor, "answer", "what is it?", clip)
    assert loaded.answer(clip, "what is it?", max_new_tokens=NEW).tokens == want


def test_a_question_about_nothing_is_answered(loaded, model, processor):
    want = said_by(model, processor, "answer", "what is it?", [])
    assert loaded.answer([], "what is it?", max_new_tokens=NEW).tokens == want
    with pytest.raises(InputError, match="question is empty"):
        loaded.answer([], " ?! ")
    with pytest.raises(InputError, match="2 pictures with 1 times"):
        loaded.describe([picture(32, 32)] * 2, [0.0])


@pytest.mark.parametrize("size", SIZES)
def test_objects_are_torchs(loaded, model, processor, size):
    image = picture(*size, seed=6)
    with torch.no_grad():
        out = FrambicusForDetection.forward(
            model, pixel_values=torch.from_numpy(processor.image_processor(image))[None]
        )
    best = out.logits[0].softmax(-1)[:, :-1].max(-1)
    x, y, w, h = out.pred_boxes[0].T
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    own = _apart(best.values.argsort(descending=True, stable=True).tolist(), best.indices.tolist(), corners.tolist())
    found = loaded.detect(image, score_min=0.0).objects
    np.testing.assert_allclose([o.score for o in found], best.values[own].numpy(), atol=1e-4)
    assert {o.label for o in found} <= set(LABELS)
    scale = np.array([size[1], size[0]] * 2)
    np.testing.assert_allclose(found[0].box_px, corners[own[0]].numpy() * scale, atol=0.05)
    assert not loaded.detect(image, score_min=1.0).objects


def _apart(order, labels, corners):
    """The queries that share with no surer one of their label more than 0.4 of what both cover."""
    kept = []
    for query in order:
        if all(labels[query] != labels[other] or _overlap(corners[query], corners[other]) <= 0.4 for other in kept):
            kept.append(query)
    return kept


def _overlap(one, other):
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (one, other)]
    return shared / (sum(areas) - shared)


def test_embeddings_are_torchs(loaded, model, processor):
    images, texts = [picture(60, 80, seed=i) for i in range(3)], ["a red cup", "two dogs and a boat", "Red"]
    with torch.no_grad():
        seen = model.embed_images(torch.from_numpy(np.stack([processor.image_processor(i) for i in images])))
        ids = [processor.tokenizer.prompt("recommend", t.lower()) for t in texts]
        read = torch.cat([model.embed_texts(torch.tensor([i])) for i in ids])
    for image, want in zip(images, seen.numpy(), strict=True):
        got = loaded.embed(image).values
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert np.linalg.norm(got) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(loaded.task("embed").texts(texts), read.numpy(), atol=1e-4)
    ranked = loaded.recommend(images[0], texts)
    want = (seen[0] @ read.T).tolist()
    assert [item.score for item in ranked.items] == pytest.approx(sorted(want, reverse=True), abs=1e-4)


def test_classes_are_the_towers(loaded, model, processor):
    image = picture(200, 150, seed=2)
    with torch.no_grad():
        (logits,) = model.vision({"pixel_values": torch.from_numpy(processor.image_processor(image))[None]})
    want = logits[0].softmax(-1)
    np.testing.assert_allclose(loaded.task("classify").probabilities(image), want.numpy(), atol=1e-4)
    assert len(loaded.task("classify").names) == 1000
    assert loaded.task("detect").names == LABELS
    with pytest.raises(InputError, match="takes a picture"):
        loaded.classify(audio=np.zeros(16_000, np.float32))


def test_speech_is_moonshines(loaded, model, bundle, repository):
    samples, rate_hz = load_audio(CLIP)
    ids = model.speech.generate(
        input_values=torch.from_numpy(_mono(samples, rate_hz))[None], max_new_tokens=40, do_sample=False
    )[0].tolist()
    want = tuple(i for i in ids if i not in (1, 2))
    assert loaded.transcribe(samples, sample_rate_hz=rate_hz, max_new_tokens=40).tokens == want
    assert want


def test_speechs_graphs_are_those_of_its_family(plan, repository):
    own = plan.beside[frambicus.SPEECH]
    alone = moonshine.plan(find_checkpoint(repository / "samples" / "checkpoint" / "speech"))
    assert (own.tokens, own.generation, own.processing, own.context) == (
        alone.tokens, alone.generation, alone.processing, alone.context,
    )  # fmt: skip
    one, other = (traced(next(g for g in p.graphs if g.role == "audio_encoder")) for p in (own, alone))
    assert one.model == other.model
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(other.weights[k], v) for k, v in one.weights.items())


def test_a_spoken_question_is_transcribed_first(loaded):
    samples, rate_hz = load_audio(CLIP)
    image = picture(80, 90)
    heard = loaded.transcribe(samples, sample_rate_hz=rate_hz).text
    spoken = loaded.answer(image, "", audio=samples, sample_rate_hz=rate_hz, max_new_tokens=NEW)
    typed = loaded.answer(image, heard, max_new_tokens=NEW)
    assert (spoken.tokens, spoken.heard, typed.heard) == (typed.tokens, heard, "")
    assert spoken.ttft_ms > typed.ttft_ms
    with pytest.raises(InputError, match="sound alone"):
        loaded.answer(image, "what?", audio=samples, sample_rate_hz=rate_hz)


def test_a_frame_is_looked_at_once(bundle, monkeypatch):
    looks = []
    look = sight.Look.__init__
    monkeypatch.setattr(sight.Look, "__init__", lambda self, *given: looks.append(1) or look(self, *given))
    with Model(open_bundle(bundle), runtime="onnxruntime", options=EXACT) as one:
        clip = [picture(50, 60, seed=i) for i in range(4)]
        for end in range(2, 5):
            one.describe(clip[:end], max_new_tokens=1)
        one.caption(clip[3], max_new_tokens=1)
        one.detect(clip[3])
        one.classify(clip[3])
        one.embed(clip[3])
    assert len(looks) == 4


def test_pictures_that_pass_do_not_push_a_window_out(bundle, monkeypatch):
    looks = []
    look = sight.Look.__init__
    monkeypatch.setattr(sight.Look, "__init__", lambda self, *given: looks.append(1) or look(self, *given))
    frames, passing = [picture(50, 60, seed=i) for i in range(16)], 18
    windows = [frames[max(0, end - 12) : end] for end in range(2, 17)]
    with Model(open_bundle(bundle), runtime="onnxruntime", options=EXACT) as one:
        told = []
        for number, window in enumerate(windows):
            told.append(one.describe(window, range(len(window)), max_new_tokens=4).tokens)
            for seed in range(passing):
                one.classify(picture(24, 32, seed=1000 * (number + 1) + seed))
        assert len(looks) - passing * len(windows) <= len(frames), "a frame of a window was encoded twice"
        eyes = one.task("describe").sight
        assert len(eyes._clips) <= 12
        assert len(eyes._looks) <= 16
        for window, before in zip(windows, told, strict=True):
            eyes._looks.clear(), eyes._clips.clear()
            eyes._last = None
            assert one.describe(window, range(len(window)), max_new_tokens=4).tokens == before


def test_it_runs_live(bundle, capfd):
    ran = Cli(capfd)(
        "run", bundle, "--camera", CLIP, "--as-fast-as-possible", "--task", "caption,detect,describe,classify,answer",
        "--ask", "what is it?", "--window", "3@4fps", "--max-new-tokens", "4", "--score-min", "0.01",
        "--max-frames", "24", "--no-show", "--runtime", "onnxruntime", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = {e["type"] for e in events}
    assert {"caption", "detections", "description", "labels", "answer"} <= kinds
    assert "error" not in kinds
    told = [e for e in events if e["type"] == "description"]
    assert all(1 < len(e["frames"]) <= 3 and e["t_start_s"] < e["t_end_s"] for e in told)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), picture(60, 80, seed=1)[..., ::-1])
    shutil.copy(CLIP, folder / "clip.mp4")
    samples, rate_hz = load_audio(CLIP)
    soundfile.write(folder / "said.wav", samples[: 3 * rate_hz], rate_hz)
    rows = [
        {"image": "0.png", "text": ["a red cup"]},
        {"image": "0.png", "question": "What color is it?", "answer": "red"},
        {"image": "0.png", "audio": "said.wav", "answer": "red"},
        {"image": "0.png", "objects": {"bbox": [[1, 2, 30, 40]], "category": ["cup"]}},
        {"image": "0.png", "label": "coffee mug"},
        {"video": "clip.mp4", "text": "a cup moves to the left"},
        {"audio": "said.wav", "text": "hello"},
        {"user": "a red cup", "item": "0.png", "score": 1},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_its_tasks_are_evaluated(bundle, data, capfd):
    ran = Cli(capfd)(
        "eval", bundle, "--data", data, "--per-example", data / "said.jsonl", "--runtime", "onnxruntime", "--json"
    )
    assert ran.code == 0, ran.err
    metrics = ran.json["metrics"]
    assert {"cider", "vqa_accuracy", "map50", "top1", "describe_cider", "wer", "ndcg@10"} <= metrics.keys()
    assert ran.json["n"] == 8


def test_towers_that_are_not_there_are_missed(checkpoint, tmp_path):
    moved = shutil.copytree(checkpoint / "frambicus", tmp_path / "frambicus")
    with pytest.raises(CheckpointError, match="labels is not here"):
        export(moved, tmp_path / "bundle")
    whole = find_checkpoint(checkpoint / "frambicus")
    assert [t.path.name for t in whole.towers] == ["labels", "speech"]
    assert whole.parameters > 27e6


def test_two_models_of_one_name_are_refused(checkpoint, plan, repository, tmp_path, monkeypatch):
    speech = repository / "samples" / "checkpoint" / "speech"
    models = {"speech": str(speech), "frambicus": str(checkpoint / "frambicus")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "composite", "models": models}))
    monkeypatch.setattr(pipeline, "_family_plan", lambda path: (find_checkpoint(path), plan))
    with pytest.raises(CheckpointError, match="two models called speech"):
        export(tmp_path, tmp_path / "bundle")


def _mono(samples, rate_hz):
    from edgemm.processing.audio import to_mono_16k

    return to_mono_16k(samples, rate_hz, RATE_HZ)
