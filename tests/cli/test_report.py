"""`edgemm report`: one page that stands alone, with what the manifest, the clock and the model say."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

from edgemm.bundle.opening import open_bundle
from tests.cli.cli_runner import CLIP, Cli


class _Page(HTMLParser):
    """Texts of cells, and every address that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.open

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_it_holds_everything_and_fetches_nothing(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    cup = CLIP.with_name("cup.jpg")
    ran = cli("report", bundle, "-o", out, "--rounds", "2", "--data", cup, "--data", CLIP, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["bytes"] == out.stat().st_size < 1_000_000
    page = _Page(out.read_text())
    assert page.fetched == []
    manifest = open_bundle(bundle).manifest
    for component in manifest.components:
        assert component.name in page.texts
        assert f"{component.parameters:,}" in page.texts
    for check in manifest.checks.tasks:
        assert check.metric in page.texts
    assert "onnxruntime" in page.texts
    assert any("2 rounds" in text for text in page.texts)
    assert {"cup.jpg", CLIP.name} <= set(page.texts)
    assert any("espresso" in text for text in page.texts)
    assert any("amiable" in text for text in page.texts)
    assert len(re.findall("data:image/jpeg", out.read_text())) == 2


def test_nothing_is_timed_or_shown_unless_asked_for(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert cli("report", bundle, "-o", out, "--rounds", "0").code == 0
    page = _Page(out.read_text())
    assert "Speed here" not in page.texts
    assert "Examples" not in page.texts


def test_an_example_that_is_none_leaves_no_page(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    cli.refused("report", bundle, "-o", out, "--rounds", "0", "--data", tmp_path / "torn.jpg")
    assert not out.exists()


def test_bench_and_eval_write_into_it(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "page.html", tmp_path / "cups & mugs"
    (data / "espresso").mkdir(parents=True)
    shutil.copy(CLIP.with_name("cup.jpg"), data / "espresso/cup.jpg")
    rows = tmp_path / "eval.jsonl"
    for _ in range(2):
        assert cli("eval", bundle, "--data", data, "--report", out, "--per-example", rows).code == 0
    assert cli("report", bundle, "-o", out, "--rounds", "0", "--data", CLIP.with_name("cup.jpg")).code == 0
    assert cli("bench", bundle, "--rounds", "1", "--report", out).code == 0
    assert cli("bench", bundle, "--rounds", "2", "--report", out, "--against", bundle).code == 0
    page = _Page(out.read_text())
    assert page.fetched == []
    for heading in ("Size", "On cups & mugs", "Examples", "Speed here"):
        assert page.texts.count(heading) == 1, heading
    assert "top1" in page.texts
    assert "100.00" in page.texts
    assert any(text.startswith("2 rounds") for text in page.texts)
    assert f"times faster than {open_bundle(bundle).name}" in page.texts


def test_a_page_of_something_else_stays_as_it_is(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("<h1>My notes</h1>")
    assert "is no report of" in cli.refused("bench", bundle, "--rounds", "1", "--report", out)
    assert out.read_text() == "<h1>My notes</h1>"
