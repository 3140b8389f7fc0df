"""The repository's EfficientNet-lite0 weights against the package that published the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgemm.bundle.opening import open_bundle
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families import efficientnet_lite0
from edgemm.export.pipeline import export
from edgemm.model import Model
from tests.export.exported import EXACT, RUNTIMES, picture

TOLERANCE = 1e-4
SIZES = [(224, 224), (300, 211), (97, 480)]


@pytest.fixture(scope="module")
def real(repository):
    path = repository / "samples" / "checkpoint" / "labels"
    if not path.is_dir():
        pytest.skip("the repository's checkpoint is not here")
    return path


@pytest.fixture(scope="module")
def published(real):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0")
    tensors = {k: v.float() for k, v in load_file(real / "model.safetensors").items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


def pixels(height, width):
    """A picture as the network takes it, cut by numpy alone: [1, 3, 224, 224]."""
    image = picture(max(height, 224), max(width, 224))[:224, :224].astype(np.float32)
    return torch.from_numpy((image - 127) / 128).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", SIZES)
def test_the_module_equals_the_published_network(real, published, size):
    own = efficientnet_lite0.load(find_checkpoint(real))
    with torch.no_grad():
        expected, (found,) = published(pixels(*size)), own({"pixel_values": pixels(*size)})
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=TOLERANCE)


@pytest.fixture(scope="module")
def bundle(real, tmp_path_factory):
    return export(real, tmp_path_factory.mktemp("real") / "bundle").bundle


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_bundle_equals_the_module(real, bundle, runtime, size):
    own = efficientnet_lite0.load(find_checkpoint(real))
    with Model(open_bundle(bundle), runtime=runtime, options=EXACT) as one, torch.no_grad():
        session = one.task("classify")._graphs.session("model")
        found = session.run({"pixel_values": pixels(*size).numpy()})["logits"]
        (expected,) = own({"pixel_values": pixels(*size)})
    np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE)
