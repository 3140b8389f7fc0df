"""Concept tokens: which classes, spelled how, and seen where."""

import torch

from edgemm.export.frambicus import FrambicusModel
from tests.frambicus.small import tiny


def test_names_are_spelled_token_by_token(processor):
    names = tiny(FrambicusModel).concepts.speller.names
    assert names.shape == (1000, 4)
    said = [processor.tokenizer.decode([i for i in names[row].tolist() if i >= 0]) for row in (1, 504, 967, 281)]
    assert said == ["goldfish", "coffee mug", "espresso", "tabby cat"]


def test_the_best_are_sure_in_a_cell_and_in_the_whole():
    concepts = tiny(FrambicusModel, text_config={"concepts": 3}).concepts
    probabilities = torch.full((1, 2, 50, 1000), 1e-5)
    probabilities[0, 0, 7, 11] = 0.9
    probabilities[0, :, 49, 11] = 0.2
    probabilities[0, 1, 30, 22] = 1.0
    probabilities[0, :, 49, 33] = 0.3
    probabilities[0, 1, 49, 44] = 0.3
    probabilities[0, 1, 3, 44] = 0.9
    classes, logs, cells = concepts.best(probabilities, torch.tensor([[1, 0]]))
    assert classes[0, :2].tolist() == [11, 33]
    torch.testing.assert_close(logs[0, 0].exp(), torch.tensor([0.9, 0.2]))
    assert cells[0, 0] == 7
    assert concepts.best(probabilities, torch.tensor([[1, 1]]))[0][0, 0] == 44


def test_what_has_no_name_or_no_picture_is_masked(model, grids):
    shown = [grid[:2] for grid in grids]
    with torch.no_grad():
        sight = model.see(grids=shown, frame_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    classes = model.concepts.best(sight.probabilities, sight.frame_mask)[0]
    spelled = (model.concepts.speller.names[classes[0]] >= 0).flatten()
    assert torch.equal(sight.concept_mask[0] == 1, spelled)
    assert not sight.concept_mask[1].any()


def test_classes_go_by_the_names_that_are_dealt(model, grids):
    concepts, where = model.concepts, model.connector.tokens.where(7, 7, grids[-1].device)
    sight = model.see(grids=[grid[:2] for grid in grids])
    own = torch.arange(1000).expand(2, -1)
    plain = concepts(sight.probabilities, sight.frame_mask, where, model.table)
    same = concepts(sight.probabilities, sight.frame_mask, where, model.table, own)
    torch.testing.assert_close(plain, same)
    torch.testing.assert_close(plain[0], sight.concepts)
    classes, scores, cells = concepts.best(sight.probabilities, sight.frame_mask)
    dealt = own.flip(1)
    known = concepts.known(scores, cells, where)
    spelled = concepts.speller(999 - classes, known, torch.ones_like(classes), model.table)
    renamed = concepts(sight.probabilities, sight.frame_mask, where, model.table, dealt)
    torch.testing.assert_close(renamed[0], spelled[0])
    assert not torch.equal(renamed[0], plain[0])
