"""What a model began with, what that began with, and under which licences: the ancestors of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visionzoo.embedded import EMBEDDED, PREFIX, read_card
from visionzoo.files import write_json
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.record import read_record
from visionzoo.text import parse_json
from visionzoo.weights.hub import CARD_FILE, HUB_PREFIX, LINEAGE_FILE, transport_errors
from visionzoo.weights.local import local_source
from visionzoo.weights.sources import TIMM_PREFIX, resolve_source

#: The licence of weights that nothing says it of.
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """Weights that a model began with, or its ancestors did."""

    name: str  #: without the folders that it lay in
    licence: str  #: in lower case, as hubs write it, such as ``apache-2.0``; ``unknown`` where nothing says it


def lineage_of(sources: Iterable[str | None]) -> tuple[Ancestor, ...]:
    """The ancestors of a model that begins with these weights, each once, nearest first.

    Args:
        sources: as ``--model.weights`` names them; None for random ones.

    Raises:
        ValueError: for a damaged record of theirs.
    """
    found = [ancestor for source in sources if source is not None for ancestor in _of_source(str(source))]
    return tuple(dict.fromkeys(found))


def lineage_of_run(folder: RunFolder) -> tuple[Ancestor, ...] | None:
    """What the record of a run says of it; None where it says nothing.

    Raises:
        ValueError: for a damaged record.
    """
    if (folder.path / LINEAGE_FILE).is_file():  # it was published
        return _read(folder.path / LINEAGE_FILE)
    if folder.path.parent == EMBEDDED:
        return ()
    if not folder.record.is_file():
        return None
    written = [session["ancestors"] for session in read_record(folder) if "ancestors" in session]
    return _checked(written[-1], str(folder.record)) if written else None


def write_lineage(folder: Path, lineage: Iterable[Ancestor]) -> None:
    """Write ``lineage.json``, beside weights that are published."""
    write_json(folder / LINEAGE_FILE, {"ancestors": [asdict(ancestor) for ancestor in lineage]})


def card_licence(card: Path) -> str:
    """The licence in the first lines of a model card, as hubs read it; ``unknown`` where it has none."""
    from huggingface_hub.repocard import metadata_load

    try:
        facts = metadata_load(card) if card.is_file() else None
    except (ValueError, OSError) as error:
        raise ValueError(f"{card} has no readable facts: {str(error).splitlines()[0]}") from error
    licence = (facts or {}).get("license")
    return normalized(licence) if isinstance(licence, str) else UNKNOWN


def normalized(licence: str) -> str:
    """``Apache 2.0`` -> ``apache-2.0``."""
    return re.sub(r"[\s_]+", "-", licence.strip().lower()) or UNKNOWN


def _of_source(source: str) -> tuple[Ancestor, ...]:
    if source.partition(":")[0] == PREFIX:
        name = Path(local_source(source, "classify")).name
        licence = re.search(r"weights ([\w.-]+)", read_card(name)["licence"])
        return (Ancestor(name=f"{PREFIX}:{name}", licence=normalized(licence[1]) if licence else UNKNOWN),)
    if source.startswith(TIMM_PREFIX):
        return (Ancestor(name=source, licence=_timm_licence(source.removeprefix(TIMM_PREFIX))),)
    folder = Path(local_source(source))
    if source.startswith(HUB_PREFIX):
        if not folder.is_dir():  # of another library
            folder = _fetched_card(source)
        return (Ancestor(name=source, licence=card_licence(folder / CARD_FILE)), *_further(folder))
    if folder.is_dir():
        if RunFolder(folder).record.is_file() and not (folder / LINEAGE_FILE).is_file():
            known = lineage_of_run(RunFolder(folder))
            return (Ancestor(name=folder.resolve().name, licence=UNKNOWN),) if known is None else known
        own = Ancestor(name=folder.resolve().name, licence=card_licence(folder / CARD_FILE))
        return (own, *_further(folder))
    return (Ancestor(name=folder.name, licence=UNKNOWN),)


def _further(folder: Path) -> tuple[Ancestor, ...]:
    path = folder / LINEAGE_FILE
    return _read(path) if path.is_file() else ()


def _fetched_card(source: str) -> Path:
    """The folder in the cache with the card of a repository, where it has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    folder = resolve_source(source).parent
    if not (folder / CARD_FILE).is_file():
        try:
            hf_hub_download(repository, CARD_FILE, revision=revision or None)
        except transport_errors(EntryNotFoundError, HfHubHTTPError, OSError):
            return folder  # without it the licence is unknown, which publishing asks about
    return folder


def _timm_licence(name: str) -> str:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    return normalized(config.license) if config is not None and config.license else UNKNOWN


def _read(path: Path) -> tuple[Ancestor, ...]:
    values = parse_json(path.read_bytes(), str(path))
    return _checked(values.get("ancestors") if isinstance(values, dict) else None, str(path))


def _checked(values: Any, origin: str) -> tuple[Ancestor, ...]:
    names = {"name", "licence"}
    if not isinstance(values, list) or not all(
        isinstance(v, dict) and set(v) == names and all(isinstance(text, str) for text in v.values()) for v in values
    ):
        raise ValueError(f"{origin} has no list of ancestors, each with a name and a licence; remove that entry")
    return tuple(Ancestor(**v) for v in values)
