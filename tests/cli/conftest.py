"""The command line, the default bundle, and a cache of this run's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.model import default_bundle_path
from tests.cli.cli_runner import Cli


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capfd)


@pytest.fixture(scope="session")
def bundle() -> Path:
    return Path(default_bundle_path())
