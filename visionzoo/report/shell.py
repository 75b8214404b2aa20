"""A page in one file: its frame, its style and its script, and nothing from anywhere else.

What the page shows is data that anybody may have made. Three things stand between it and the reader: jinja2 escapes
every text, terminal.py writes out what turns the reading direction, and the policy in the page's head lets the browser
run only the script that was there when it was written, known by its hash, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionzoo.files import write_text
from visionzoo.report.charts import Chart
from visionzoo.report.components import Beside, ImagePool, PageSection
from visionzoo.terminal import visible

if TYPE_CHECKING:
    from jinja2 import Environment

PARTS = Path(__file__).parent / "page"


def write_page(
    out: str | Path, title: str, sections: Sequence[PageSection], *, subtitle: str = "", pool: ImagePool | None = None
) -> Path:
    """Write a page of sections, atomically.

    Args:
        out: the file.
        title: of the page.
        sections: in order; those without parts are left out.
        subtitle: a line under the title.
        pool: the pictures that parts of it open.
    """
    write_text(out, render(title, sections, subtitle=subtitle, pool=pool))
    return Path(out)


def render(title: str, sections: Sequence[PageSection], *, subtitle: str = "", pool: ImagePool | None = None) -> str:
    """The text of :func:`write_page`."""
    pool = pool or ImagePool()
    sections = [section for section in sections if section.parts]
    charts = {part.id: part.data() for section in sections for part in _each(section.parts) if isinstance(part, Chart)}
    style, script = _file("components.css") + _file("style.css"), _file("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            style=_trusted(style),
            script=_trusted(script),
            policy="; ".join(
                (
                    "default-src 'none'",
                    "img-src data:",
                    f"style-src {_hash(style)}",
                    f"script-src {_hash(script)}",
                    "base-uri 'none'",
                    "form-action 'none'",
                )
            ),
            data=_trusted(as_inline_json({"images": pool.images, "groups": pool.groups, "charts": charts})),
        )
    )


def fragment(parts: Sequence[Any], pool: ImagePool) -> dict[str, Any]:
    """Parts for a page of somebody else, which has ``components.css`` and loads ``page.js`` when they are in it.

    Args:
        parts: no charts among them.
        pool: the pictures that they open.

    Returns:
        ``html``, escaped, and ``data``, the JSON that ``page.js`` reads in an element ``#data``.
    """
    html = _environment().get_template("fragment.html").render(parts=parts)
    return {"html": html, "data": _shown({"images": pool.images, "groups": pool.groups, "charts": {}})}


def _each(parts: Sequence[Any]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, Beside):
            yield from _each(part.parts)
        else:
            yield part


def as_inline_json(value: Any) -> str:
    """JSON that can stand in a script element: no character in it ends the element, a comment or a line."""
    text = json.dumps(_shown(value), allow_nan=False, separators=(",", ":"))  # all but ASCII is escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """Texts as a person may read them."""
    if isinstance(value, str):
        return value if value.startswith("data:image/") else visible(value)
    if isinstance(value, dict):
        return {visible(k): _shown(v) for k, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list | tuple) else value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(value)

    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["charts_together"] = _charts_together
    environment.filters["code"] = _code
    return environment


def _charts_together(parts: Sequence[Any]) -> list[tuple[bool, list[Any]]]:
    """(whether they are charts, parts) of parts that follow each other: charts stand side by side."""
    return [(charts, list(some)) for charts, some in groupby(parts, key=lambda part: isinstance(part, Chart))]


def _code(text: str) -> Any:
    """Escaped text, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = [escape(visible(part)) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _trusted(text: str) -> Any:
    """Text of this package, or that :func:`as_inline_json` has escaped."""
    from markupsafe import Markup

    return Markup(text)


def _file(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
