"""Text comes out the same with a cache, without one, in a batch and alone."""

import pytest
import torch

from edgemm.export.frambicus import FrambicusForImageCaptioning
from tests.frambicus.small import tiny


def _said(model, **given):
    return model.generate(max_new_tokens=12, do_sample=False, **given)


@pytest.fixture(scope="module")
def prompts(processor):
    """Two questions of different lengths, padded on the left."""
    return processor.write("answer", ["what is left of the cup", "where"])


def test_a_cache_changes_nothing(model, grids, prompts):
    given = {**prompts, "grids": [grid[:2] for grid in grids], "input_values": torch.randn(2, 5000)}
    said = _said(model, **given)
    assert torch.equal(said, _said(model, **given, use_cache=False))
    assert len(set(said[0, -12:].tolist())) > 1


def test_the_cache_holds_what_a_whole_pass_sees(model, grids, prompts):
    said = _said(model, **prompts, grids=[grid[:2] for grid in grids])
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, 12), value=1)
    with torch.no_grad():
        whole = model(input_ids=said, attention_mask=mask, grids=[grid[:2] for grid in grids])
    assert torch.equal(whole.logits[:, -13:-1].argmax(-1), said[:, -12:])


def test_a_batch_says_what_its_rows_say(model, grids, prompts):
    both = _said(model, **prompts, grids=[grid[:2] for grid in grids])
    for row in range(2):
        kept = prompts["attention_mask"][row] == 1
        alone = _said(
            model, input_ids=prompts["input_ids"][row : row + 1, kept], grids=[g[row : row + 1] for g in grids]
        )
        assert torch.equal(alone[0, -12:], both[row, -12:])


def test_beams_and_memory_of_before(model, grids, prompts):
    given = {**prompts, "grids": [grid[:2] for grid in grids]}
    assert _said(model, **given, num_beams=3).shape[0] == 2
    with torch.no_grad():
        first = model(**given)
        again = model(**prompts, memory=first.memory, memory_mask=first.memory_mask)
    assert torch.equal(first.logits, again.logits)


def test_without_a_prompt_the_task_speaks(grids):
    model = tiny(FrambicusForImageCaptioning)
    said = _said(model, grids=grids)
    assert said[:, :2].tolist() == [[1, 32_000]] * 4
    with torch.no_grad():
        assert model(grids=grids, logits_to_keep=1).logits.shape == (4, 1, 32_768)
