"""Every part learns: a few steps on a few cached pictures are enough to see it."""

import pytest
import torch

from edgemm.export.frambicus import (
    FrambicusForDetection,
    FrambicusForImageCaptioning,
    FrambicusForPreTraining,
    FrambicusForRecommendation,
    freeze,
)
from edgemm.export.frambicus.pretraining import random_cells
from edgemm.processing.objects import objects_of
from tests.frambicus.small import noise, tiny

CAPTIONS = ["a red car", "two dogs and a cup", "a boat above a fish", "an empty room"]


def train(model, steps, lr, **given):
    """The losses of `steps` of AdamW on one batch, towers frozen."""
    freeze(model, "towers")
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def test_four_captions_come_back(grids, processor):
    model = tiny(FrambicusForImageCaptioning)
    batch = processor.write("caption", [""] * 4, CAPTIONS)
    grids = [grid[:, :1] for grid in grids]
    losses = train(model, 45, 5e-4, grids=grids, **batch, loss_only=True)
    assert losses[-1] < 0.1 < losses[0]
    said = model.generate(grids=grids, max_new_tokens=12, do_sample=False)
    assert processor.batch_decode(said, skip_special_tokens=True) == CAPTIONS


def test_the_loss_is_that_of_the_logits(grids, processor):
    model = tiny(FrambicusForImageCaptioning)
    batch = processor.write("caption", ["", "or", "so it is", ""], CAPTIONS)
    with torch.no_grad():
        whole = model(grids=grids, **batch)
        short = model(grids=grids, **batch, loss_only=True)
    logits, labels = whole.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(whole.loss, torch.nn.functional.cross_entropy(logits, labels))
    assert torch.equal(short.loss, whole.loss)
    assert short.logits is None


def test_one_picture_is_searched_better_and_better():
    model = tiny(FrambicusForDetection)
    with torch.no_grad():
        grids = model.vision.grids(noise(1))
    boxes = torch.tensor([[0.2, 0.3, 0.2, 0.2], [0.7, 0.6, 0.4, 0.5]])
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}]
    losses = train(model, 150, 2e-3, grids=grids, labels=labels)
    assert losses[-1] < losses[0] / 4
    with torch.no_grad():
        out = model(grids=grids)
    found = objects_of(out.logits.numpy(), out.pred_boxes.numpy(), 2)  # an object may be found in two cells
    order = found.labels[0].argsort()
    assert found.labels[0, order].tolist() == [1, 2]
    torch.testing.assert_close(out.pred_boxes[0, found.queries[0, order]], boxes, atol=0.08, rtol=0)


def test_a_picture_of_nothing_has_a_loss():
    model = tiny(FrambicusForDetection)
    nothing = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    with torch.no_grad():
        assert model(noise(1), labels=[nothing]).loss.isfinite()


def test_pictures_find_their_texts(grids, processor):
    model = tiny(FrambicusForRecommendation)
    texts = processor.write("recommend", CAPTIONS)
    given = {**texts, "grids": [grid[:, :1] for grid in grids], "return_loss": True}
    losses = train(model, 40, 1e-3, **given)
    assert losses[-1] < losses[0] / 3
    with torch.no_grad():
        logits = model(**given).logits
    assert logits.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["resampler", "qformer"])
def test_all_objectives_of_pretraining_at_once(kind, grids, processor):
    model = tiny(FrambicusForPreTraining, connector_config={"kind": kind})
    texts = processor.write("recommend", CAPTIONS)
    captions = processor.write("caption", [""] * 4, CAPTIONS)
    words = captions["input_ids"].clone()
    words[:, 3] = processor.tokenizer.task_id("mask")
    hidden = random_cells((4, 3, 7, 7), 0.4, torch.Generator().manual_seed(1))
    given = {
        "grids": grids,
        "hidden": hidden,
        "masked_ids": words,
        "masked_mask": captions["attention_mask"],
        "masked_labels": torch.where(words == captions["input_ids"], -100, captions["input_ids"]),
        "text_ids": texts["input_ids"],
        "text_mask": texts["attention_mask"],
        **captions,
    }
    with torch.no_grad():
        before = model(**given).loss_dict
    assert set(before) == {"masked_grid", "masked_language", "contrastive", "caption"}
    train(model, 10, 2e-3, **given)
    with torch.no_grad():
        after = model(**given).loss_dict
    assert all(after[name] < before[name] for name in before)


def test_words_compete_with_those_that_are_named(grids, processor):
    model = tiny(FrambicusForPreTraining)
    captions = processor.write("caption", [""] * 4, CAPTIONS)
    words = {f"masked_{name}": captions[key] for name, key in (("ids", "input_ids"), ("labels", "labels"))}
    given = {"grids": grids, **captions, **words, "masked_mask": captions["attention_mask"]}
    known = captions["labels"].unique()
    with torch.no_grad():
        whole, named, few = (
            model(**given, tokens=tokens).loss_dict for tokens in (None, torch.arange(32_768), known[known >= 0])
        )
    for name in ("caption", "masked_language"):
        torch.testing.assert_close(named[name], whole[name])
        assert few[name] < whole[name]


def test_hidden_cells_are_not_seen():
    model = tiny(FrambicusForPreTraining)
    with torch.no_grad():
        grids = [grid.unflatten(0, (1, 1)) for grid in model.vision.grids(noise(1))]
        hidden = random_cells((1, 1, 7, 7), 0.5, torch.Generator().manual_seed(1))
        assert hidden.sum() == round(0.5 * 49)
        changed = [grid.clone() for grid in grids]
        changed[1][hidden[:, :, None].expand_as(grids[1])] += 1
        finer = hidden.repeat_interleave(2, -1).repeat_interleave(2, -2)
        changed[0][finer[:, :, None].expand_as(grids[0])] += 1
        one, other = (model.see(grids=g, hidden=hidden).visual for g in (grids, changed))
    assert torch.equal(one, other)
