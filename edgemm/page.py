"""Reports as one HTML page that needs nothing beside it: sections by name, which can be added to later."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; --ink: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #2dd4bf; } }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 30%; } td.bar span { display: block; height: .7rem; background: var(--ink); border-radius: 3px; }
img { max-width: 100%; height: auto; border-radius: 6px; }
img.plot { width: 100%; background: #fff; }
figure { display: flex; gap: 1rem; margin: 1rem 0; flex-wrap: wrap; } figure img { width: 320px; }
figcaption { flex: 1; min-width: 16rem; }
code { background: #8882; padding: .1rem .3rem; border-radius: 4px; overflow-wrap: anywhere; }
.note { color: #888; }
"""
_SECTION = re.compile(r'<section id="([^"]*)">\n(.*?)\n</section>\n', re.DOTALL)
_SUBJECT = re.compile(r'<meta name="subject" content="([^"]*)">')

Cell = str | float | None
Sections = Mapping[str, str]


def document(title: str, sections: Sections, *, subject: str = "") -> str:
    """A page of sections, name → HTML in order. `subject` tells what it is about to whoever adds to it."""
    body = "".join(f'<section id="{escape(name)}">\n{html}\n</section>\n' for name, html in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><meta name="subject" content="{escape(subject)}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def subject_of(page: str) -> str | None:
    """What a page is about, None of a page that is none of `document`'s."""
    found = _SUBJECT.search(page)
    return found[1] if found else None


def sections_of(page: str) -> dict[str, str]:
    """The sections of a page that `document` made."""
    return {unescape(name): html for name, html in _SECTION.findall(page)}


class Html(str):
    """Markup that is not escaped again."""


def bar(share: float) -> str:
    """A cell with a bar of so much of its width, 0…1."""
    return Html(f'<span style="width:{max(0.5, 100 * share):.1f}%"></span>')


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """`>` before a head: numbers, to the right."""
    kinds = ["n" if head.startswith(">") else "" for head in heads]
    top = "".join(f'<th class="{k}">{escape(h.removeprefix(">"))}</th>' for k, h in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell(value, kind) for value, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def plot(picture: bytes, about: str) -> str:
    """A plot as PNG or SVG, `about` for those who do not see it."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    data = base64.b64encode(picture).decode()
    return f'<img class="plot" alt="{escape(about)}" src="data:image/{kind};base64,{data}">'


def _cell(value: Cell, kind: str) -> str:
    if isinstance(value, Html):
        return f'<td class="bar">{value}</td>'
    return f'<td class="{kind}">{escape("" if value is None else str(value))}</td>'
