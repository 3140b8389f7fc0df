"""What every test shares."""

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# No test reads or fills the user's caches, and none asks a hub.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edgemm-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT
