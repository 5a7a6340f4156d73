"""A self-contained HTML page: every text is escaped, nothing is loaded, nothing runs."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Final, NewType

Html = NewType("Html", str)
"""Markup that this module made; any other text goes through `text` first."""

# The policy makes the page inert even if an escape were forgotten: no script, no request, images from data only.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE: Final = """
:root { --ink: #22262b; --soft: #69717b; --line: #e2e0da; --paper: #fbfaf7; --accent: #2f6f73;
  --accepted: #5b9a8b; --rejected: #c8694f; --duplicate: #d9b25f; --excluded: #b9bfc6; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; font-weight: 500; letter-spacing: -.01em; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; font-weight: 600; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 44rem; }
.lead { color: var(--soft); }
.verdict { padding: .7rem 1rem; border-left: 4px solid var(--accepted); background: #eef4f1; max-width: none; }
.verdict.bad { border-color: var(--rejected); background: #faeeea; }
table { border-collapse: collapse; margin: 1rem 0 1.4rem; font: 13.5px/1.45 ui-sans-serif, system-ui, sans-serif; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1.5px solid var(--ink); }
th, td { padding: .32rem 1.1rem .32rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); overflow-wrap: break-word; max-width: 24rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: flex; height: 14px; border-radius: 3px; overflow: hidden; margin: 1.2rem 0 .5rem; }
.bar span { min-width: 2px; }
.key { font: 13px/1.5 ui-sans-serif, system-ui, sans-serif; color: var(--soft); }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 .4rem 0 1.1rem; }
.key i:first-child { margin-left: 0; }
figure { margin: 1.4rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; align-items: end; }
figure img { max-width: 100%; height: auto; border-radius: 3px; }
figcaption { color: var(--soft); font-size: .88rem; }
.big { font-size: 2.6rem; line-height: 1.1; color: var(--accent); font-variant-numeric: tabular-nums; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem 3.2rem; margin: 1.4rem 0; }
.cards p { margin: 0; font-size: .9rem; color: var(--soft); max-width: 15rem; }
@media print { body { background: #fff; } main { padding: 0; } }
"""


def text(value: object) -> Html:
    """Any value as inert text; lone surrogates (undecodable file names) have no UTF-8 form and are spelled."""
    return Html(html.escape(str(value).encode("utf-8", "backslashreplace").decode()))


def join(parts: Iterable[Html]) -> Html:
    """Pieces of a page one after the other."""
    return Html("\n".join(parts))


def page(title: str, body: Html) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def title(line: str, subtitle: str) -> Html:
    """The head of a page."""
    return Html(f'<h1>{text(line)}</h1>\n<p class="lead">{text(subtitle)}</p>')


def heading(line: str) -> Html:
    """The head of a section."""
    return Html(f"<h2>{text(line)}</h2>")


def paragraph(line: str, style: str = "") -> Html:
    """A paragraph; `style` is one of this page's classes: lead, verdict, `verdict bad`."""
    return Html(f'<p class="{text(style)}">{text(line)}</p>')


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Html:
    """A table; a column whose cells are all numbers is aligned right."""
    numeric = [all(isinstance(row[place], int | float) for row in rows) for place in range(len(columns))]
    head = _cells("th", columns, numeric)
    body = "\n".join(f"<tr>{_cells('td', row, numeric)}</tr>" for row in rows)
    title_line = f"<caption>{text(caption)}</caption>" if caption else ""
    return Html(f"<table>{title_line}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def _cells(tag: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    return "".join(
        f"<{tag}{' class=number' if right else ''}>{text(cell)}</{tag}>"
        for cell, right in zip(cells, numeric, strict=True)
    )


def bar(parts: Sequence[tuple[str, int]]) -> Html:
    """One bar whose pieces are proportional to counts; names are the colours of this page (accepted, ...)."""
    present = [(name, number) for name, number in parts if number]
    pieces = "".join(f'<span style="flex:{number};background:var(--{text(name)})"></span>' for name, number in present)
    keys = "".join(f'<i style="background:var(--{text(name)})"></i>{number} {text(name)}' for name, number in present)
    return Html(f'<div class="bar">{pieces}</div><div class="key">{keys}</div>')


def card(value: str, line: str) -> Html:
    """A number that matters, and what it is."""
    return Html(f'<div><div class="big">{text(value)}</div><p>{text(line)}</p></div>')


def cards(items: Iterable[Html]) -> Html:
    """Cards side by side."""
    return Html(f'<div class="cards">{join(items)}</div>')


def figure(png: bytes, caption: str) -> Html:
    """A PNG inside the page; `caption` is also its text for who cannot see it."""
    data = base64.b64encode(png).decode()
    return Html(
        f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def pair(items: Iterable[Html]) -> Html:
    """Figures in two columns."""
    return Html(f'<div class="pair">{join(items)}</div>')
