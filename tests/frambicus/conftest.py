"""What the tests of Frambicus share."""

import pytest
import torch

from edgemm.export.frambicus import FrambicusForQuestionAnswering, processor_of
from tests.frambicus.small import noise, tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def processor():
    """The processor over the repository's tokenizer."""
    return processor_of()


@pytest.fixture(scope="session")
def model():
    """Read only: tests that train make their own."""
    return tiny(FrambicusForQuestionAnswering)


@pytest.fixture(scope="session")
def grids(model):
    """The tower's grids of four clips of three frames, [4, 3, …]."""
    with torch.no_grad():
        return [grid.unflatten(0, (4, 3)) for grid in model.vision.grids(noise(12))]
