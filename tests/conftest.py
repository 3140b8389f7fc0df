"""What every test shares."""

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# No test reads or fills the user's caches, none asks a hub, and none depends on which runtime was faster.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edgemm-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["EDGEMM_NO_MICROBENCH"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT
