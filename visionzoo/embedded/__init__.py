"""The models that come with the package: trained here, small, and loaded without a network.

Each is a folder here: ``model.safetensors`` and ``config.json``, as in a run folder, and
``card.md``, which says what it was trained on, how, and what it reaches. ``python -m visionzoo.inference.embed_model``
makes one of a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from visionzoo.files import similar_names

EMBEDDED = Path(__file__).parent
PREFIX = "embedded"
#: What ``embedded`` alone means, by task.
MODEL_OF_TASK = {"classify": "digits", "clip": "shapes", "mae": "shapes-mae", "segment": "nuclei"}
_FACT = re.compile(r"^- \*\*(.+?)\*\*: (.+)$", re.MULTILINE)


def embedded_names() -> list[str]:
    """The models that are there, sorted."""
    return sorted(path.parent.name for path in EMBEDDED.glob("[!.]*/model.safetensors"))


def embedded_source(source: Any, task: str | None = None) -> Any:
    """The folder of a model that comes with the package, for ``embedded`` or ``embedded:NAME``; else ``source`` itself.

    Args:
        source: what a user named.
        task: ``classify``, ``clip``, ``mae`` or ``segment``: what ``embedded`` alone is for; None where the name must
            be said.

    Raises:
        ValueError: for a name that there is not, or no name where one is needed.
    """
    if not isinstance(source, str) or source.partition(":")[0] != PREFIX:
        return source
    names, name = embedded_names(), source.partition(":")[2]
    if not name and ":" not in source and task is not None:
        name = MODEL_OF_TASK[task]
    if name not in names:
        near = similar_names(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"
        raise ValueError(f"{source!r} names no model of the package; {hint} (written embedded:NAME)")
    return str(EMBEDDED / name)


def read_card(name: str) -> dict[str, str]:
    """The facts on the card of an embedded model: ``task``, ``data``, ``licence``, ``command``, ``reached``, others."""
    return dict(_FACT.findall((EMBEDDED / name / "card.md").read_text(encoding="utf-8")))
