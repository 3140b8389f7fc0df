"""The documentation: what follows from code is fresh, the site builds, and what it tells a reader to run works."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

import edgemm.runtimes
import edgemm.tasks
from docs.generate import DOCS, pages
from edgemm import errors
from edgemm.cli.app import command as edgemm_command
from edgemm.export import families
from edgemm.export.pipeline import export
from edgemm.live.sources import container
from edgemm.model import load
from edgemm.runtimes import registry
from edgemm.tasks.registry import TASKS
from tests.cli.cli_runner import change_manifest, copy_of
from tests.documents import Block, blocks, run_command, run_python
from tests.export.exported import picture

TUTORIAL = blocks(DOCS / "tutorial.md")
EXTENDING = {block.text.partition("\n")[0].removeprefix("# "): block.text for block in blocks(DOCS / "extending.md")}


@pytest.mark.parametrize(("page", "text"), pages().items(), ids=pages())
def test_a_page_that_follows_from_code_is_fresh(page, text):
    assert (DOCS / page).read_text() == text, "run: python docs/generate.py"


class Fetched(HTMLParser):
    """The addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        kinds = (given.get("rel") or "").split()
        if tag in ("script", "img", "iframe", "source") or {"stylesheet", "preload", "preconnect", "icon"} & {*kinds}:
            self.addresses += [value for name in ("src", "href") if (value := given.get(name))]


def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path, repository):
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(mkdocs, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    site = sorted((tmp_path / "site").rglob("*.html"))
    assert len(site) > len(pages())
    for page in site:
        reader = Fetched()
        reader.feed(page.read_text())
        assert reader.addresses
        assert not [address for address in reader.addresses if "//" in address], page
    assert not list((tmp_path / "site").rglob("*.py"))


def _follow(steps: list[Block], folder: Path) -> None:
    """Does what the steps say, in their order."""
    for step in steps:
        for command in step.commands:
            # What is redirected is for the reader's eyes.
            run_command(command.partition(" > ")[0], folder)
        if step.language == "python":
            run_python(step.text, folder)


@pytest.fixture
def clone(tmp_path, repository) -> Path:
    """A folder in which paths of the documents mean what they mean in a clone."""
    for name in ("samples", "edgemm"):
        (tmp_path / name).symlink_to(repository / name)
    return tmp_path


def test_the_tutorials_quick_steps(clone):
    _follow([block for block in TUTORIAL if not block.mark], clone)
    assert len(list((clone / "frames").glob("*/*.jpg"))) == 86


@pytest.mark.slow
def test_the_whole_tutorial(clone):
    _follow([block for block in TUTORIAL if block.mark != "installation"], clone)
    assert (clone / "seen.mp4").stat().st_size > 10_000
    assert "cat" in (clone / "report.html").read_text()


def test_the_tutorials_installation_is_the_readmes(repository):
    (installation,) = (block.text for block in TUTORIAL if block.mark == "installation")
    readme = (repository / "README.md").read_text()
    for words in re.findall(r"lib[\w.-]+|python3-venv|constraints\.txt|\.\[train\]", installation):
        assert words in readme


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Iterator[Path]:
    """The bundle of a tiny ResNet, exported by the page's family as an installed distribution registers it."""
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).eval().save_pretrained(folder / "checkpoint")
    half = [0.5, 0.5, 0.5]
    settings = {"image_mean": half, "image_std": half, "size": {"height": 32, "width": 32}}
    (folder / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(settings))
    _install_family(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        families.known.cache_clear()
        yield export(folder / "checkpoint", folder / "bundle").bundle
    families.known.cache_clear()


def _install_family(folder: Path) -> None:
    """What pip would leave in a folder of packages."""
    module, info = folder / "my_families" / "resnet.py", folder / "my_families-1.0.dist-info"
    module.parent.mkdir()
    module.write_text(EXTENDING["my_families/resnet.py"])
    project = tomllib.loads(EXTENDING["pyproject.toml"])["project"]
    ((group, points),) = project["entry-points"].items()
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))


def test_a_family(resnet):
    with load(resnet) as model:
        assert len(model.classify(picture(40, 50), top=9).labels) == 3


def test_a_sink(clone):
    printed = run_python(EXTENDING["caption_file.py"], clone)
    assert printed.split()


def _put(file: str, package: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file of the page a module of one of edgemm's packages."""
    (folder / Path(file).name).write_text(EXTENDING[file])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def test_a_runtime(resnet, tmp_path, monkeypatch):
    _put("runtimes/reference.py", edgemm.runtimes, tmp_path, monkeypatch)
    written: dict = {}
    exec(EXTENDING["runtimes/registry.py"], written)
    monkeypatch.setitem(registry.RUNTIMES, "reference", written["REFERENCE"])
    monkeypatch.setattr(registry, "CHOICES", ("auto", *registry.RUNTIMES))
    image = picture(64, 64)
    with load(resnet, runtime="reference") as slow, load(resnet, runtime="onnxruntime") as fast:
        expected = fast.task("classify").probabilities(image)
        assert slow.task("classify").probabilities(image) == pytest.approx(expected, abs=1e-4)
        assert set(slow.runtimes.values()) == {"reference"}


def test_a_task(resnet, tmp_path, monkeypatch):
    _put("edgemm/tasks/doubt.py", edgemm.tasks, tmp_path, monkeypatch)
    (row,) = re.findall(r'`("doubt": \{.*?\})`', (DOCS / "extending.md").read_text())
    monkeypatch.setitem(TASKS, "doubt", ast.literal_eval(f"{{{row}}}")["doubt"])
    bundle = copy_of(resnet, tmp_path / "bundle")
    change_manifest(bundle, lambda manifest: manifest["models"][0]["tasks"].append("doubt"))
    with load(bundle) as model:
        guess = math.log2(len(model.task("classify").names))
        assert 0 < model.task("doubt")(picture(64, 64)) < guess + 1e-4


def test_every_error_code_has_its_symptom():
    page = (DOCS / "troubleshooting.md").read_text()
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgemmError)]
    for code in {kind.code for kind in kinds} | set(container._HINTS) | {"stuck"}:
        assert f"`{code}`" in page, code


def _mentioned() -> list[str]:
    """Every command that stands in the text or in a block of the pages."""
    pages = [*DOCS.glob("*.md")]
    found = {span for page in pages for span in re.findall(r"`(edgemm [^`\n]*)`", page.read_text())}
    found |= {command for page in pages for block in blocks(page) for command in block.commands}
    return sorted({command.partition(" > ")[0] for command in found})


@pytest.mark.parametrize("line", _mentioned())
def test_a_command_on_the_pages_exists(line):
    top = edgemm_command()
    words = line.split()[1:]
    command = top if words[0].startswith("--") else top.commands[words[0]]
    spelled = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= spelled | {"--help"}
