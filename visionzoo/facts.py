"""What is known of the registered backbones, read without torch from what ``python -m visionzoo.backbones`` wrote.

Counting parameters and multiply-adds of a hundred networks takes half a minute. The numbers change only with the code,
so they travel with it, and the contract sweep compares them with the code.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from visionzoo.types import BackboneInfo, Preprocess, PyramidLevel

FACTS_FILE = Path(__file__).with_name("facts.json")


@cache
def backbone_facts() -> dict[str, BackboneInfo]:
    """Name -> description at the backbone's own size, sorted by name."""
    records = json.loads(FACTS_FILE.read_text(encoding="utf-8"))
    return {name: info_from_dict(record) for name, record in records.items()}


def info_to_dict(info: BackboneInfo) -> dict[str, Any]:
    """Plain types only, for JSON."""
    return {
        **vars(info),
        "image_size": list(info.image_size),
        "capabilities": sorted(info.capabilities),
        "preprocess": info.preprocess.to_dict(),
        "pyramid": [[level.channels, level.stride] for level in info.pyramid],
    }


def info_from_dict(record: dict[str, Any]) -> BackboneInfo:
    """The inverse of :func:`info_to_dict`."""
    fitted = {
        **record,
        "image_size": tuple(record["image_size"]),
        "capabilities": frozenset(record["capabilities"]),
        "preprocess": Preprocess.from_dict(record["preprocess"]),
        "pyramid": tuple(PyramidLevel(channels=c, stride=s) for c, s in record["pyramid"]),
    }
    return BackboneInfo(**fitted)
