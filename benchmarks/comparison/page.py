"""One HTML file with everything in it: pictures as data URIs, tables that sort, nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from comparison.tables import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; } figure { margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e3e6ea; vertical-align: top; }
th { cursor: pointer; background: #f5f6f8; } td.cnn { color: #b84f12; } td.vit { color: #2f6db5; }
.facts { color: #4b5463; font-size: 13px; } .note { color: #4b5463; font-size: 13px; max-width: 70rem; }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, up = head.dataset.up = head.dataset.up ? "" : "1";
  const value = (row) => row.cells[at].textContent.trim().replaceAll(",", "");
  const number = (text) => /^-?[\\d.]/.test(text) ? parseFloat(text) : NaN;
  [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)], [m, n] = [number(x), number(y)];
    const order = isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
    return up ? order : -order;
  }).forEach((row) => body.append(row));
};
"""


def html(
    title: str, facts: Sequence[str], pictures: Mapping[str, Path], tables: Sequence[Table], problems: Sequence[str]
) -> str:
    """The page as text."""
    parts = [f"<h1>{escape(title)}</h1>", _list(facts, "facts")]
    if problems:
        parts += ["<h2>Problems</h2>", _list(problems, "problems")]
    for caption, path in pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        parts += [f"<h2>{escape(caption)}</h2>", f"<figure>{image}</figure>"]
    parts += [_table(t) for t in tables]
    body = "\n".join(parts)
    body += f"\n<script>{SCRIPT}</script>"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(i)}</li>" for i in items) + "</ul>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in table.header)
    rows = "\n".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{escape(table.title)}</h2>{note}\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _cell(text: str) -> str:
    kind = {"CNN": ' class="cnn"', "ViT": ' class="vit"'}.get(text, "")
    return f"<td{kind}>{escape(text)}</td>"
