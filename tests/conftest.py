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
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # one process a core: threads that wait for each other would spin


# Rooms and files of tests that play in real time, or wait for other processes.
_BY_THE_CLOCK = [
    ROOT / "tests" / name
    for name in (
        "cli",
        "live",
        "serve",
        "samples",
        "tasks/test_answer_live.py",
        "test_docs.py",
        "test_package.py",
        "test_readme.py",
        "train/test_label.py",
        "train/test_processes.py",
        "train/test_recordings.py",
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one tiny checkpoint run in one process (pytest-xdist), which exports it once; else those of a file.

    What plays cameras and microphones in real time, or times other processes, may be run three times, and on a shared
    machine (`CI`) everything twice: a machine that stands still for a second between two frames says nothing about
    edgemm. pytest shows each such rerun as an ``R``.
    """
    for item in items:
        by_the_clock = any(item.path.is_relative_to(room) for room in _BY_THE_CLOCK)
        item.add_marker(pytest.mark.flaky(reruns=2 if by_the_clock else 1 if os.environ.get("CI") else 0))
        parameters = getattr(item, "callspec", None)
        name = parameters.params.get("name") if parameters else None
        item.add_marker(pytest.mark.xdist_group(name if isinstance(name, str) else item.path.name))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT
