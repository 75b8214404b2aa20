"""The hub: its names, its cache on this machine, and what is downloaded into it."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from visionzoo.weights.preprocessing import read_json
from visionzoo.weights.reading import shard_names

#: Names that weights have in folders and hub repositories, best first.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
HUB_PREFIX = "hf-hub:"
#: What a repository of ours holds beside ``config.json``.
OWN_WEIGHTS, CARD_FILE, LINEAGE_FILE = "model.safetensors", "README.md", "lineage.json"
#: Folders in it, for options of the architecture of the same name.
CARRIED_FOLDERS = ("tokenizer",)


def from_hub(name: str, first: tuple[str, ...] = ()) -> Path:
    """A weights file of a hub repository, from the local cache or downloaded into it.

    ``first`` are names of files that are taken rather than others. Of a repository whose cached copy has only others,
    the hub is asked for them where it answers: an image tower lies beside its CLIP there.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    cache = Path(constants.HF_HUB_CACHE)
    offline = (
        f"the weights of hf-hub:{name} are not in the local cache {cache} and the hub cannot be reached; "
        f"connect once, or download {WEIGHT_FILES[0]} from https://huggingface.co/{repository} elsewhere "
        "and give its path"
    )
    files = tuple(dict.fromkeys((*first, *WEIGHT_FILES)))
    where: Any = {"cache_dir": cache, "revision": revision or None}
    try:
        copies = {file: try_to_load_from_cache(repository, file, **where) for file in files}
        has_others = any(isinstance(copy, str) for copy in copies.values())
        for file, copy in copies.items():
            if copy is None and has_others and file in first and hub_answers():  # None: nobody has asked for it yet
                with suppress(*transport_errors(EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled)):
                    copy = hf_hub_download(repository, file, **where)
                    _fetch_configs(repository, revision, cache)
            if isinstance(copy, str):
                return _with_shards(Path(copy), repository, revision, cache)
        if not hub_answers():
            raise FileNotFoundError(offline)
        for file in files:
            try:
                path = hf_hub_download(repository, file, **where)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            _fetch_configs(repository, revision, cache)
            return _with_shards(Path(path), repository, revision, cache)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a hub name; write hf-hub:org/name or hf-hub:org/name@revision") from error
    except transport_errors(LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(offline) from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"hf-hub:{name} is gated; accept its licence at https://huggingface.co/{repository} and run `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no {name!r} that you may read; check the name at https://huggingface.co/{repository}"
        ) from error
    raise FileNotFoundError(f"hf-hub:{name} has no weights file; expected one of {', '.join(WEIGHT_FILES)}")


def own_folder(name: str) -> Path | None:
    """The folder, in the local cache, of a repository that holds a model of ours; None for any other repository, and
    for one that cannot be reached.

    Args:
        name: ``org/name`` or ``org/name@revision``.

    Raises:
        FileNotFoundError: where its weights are missing.
        ValueError: for a damaged ``config.json``.
    """
    from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    where: Any = {"cache_dir": constants.HF_HUB_CACHE, "revision": revision or None}
    try:
        found = try_to_load_from_cache(repository, "config.json", **where)
        if not isinstance(found, str):
            # a copy of another library's weights is used as it is, and nobody is asked
            others = (try_to_load_from_cache(repository, file, **where) for file in WEIGHT_FILES)
            if any(isinstance(other, str) for other in others) or not hub_answers():
                return None
            found = hf_hub_download(repository, "config.json", **where)
    except transport_errors(HFValidationError, HfHubHTTPError, EntryNotFoundError, OSError):
        return None  # whoever asks for the weights next is told why
    config = read_json(Path(found))
    if not {"schema_version", "task"} <= config.keys():
        return None
    folder = from_hub(name, (OWN_WEIGHTS,)).parent
    for inner in CARRIED_FOLDERS:
        needed = isinstance(config.get("architecture"), dict) and config["architecture"].get(inner) == inner
        with suppress(*transport_errors(HfHubHTTPError, OSError)):  # who needs it is told that it is not there
            if needed and not (folder / inner).is_dir() and hub_answers():
                snapshot_download(repository, allow_patterns=f"{inner}/*", **where)
    for file in (CARD_FILE, LINEAGE_FILE):
        with suppress(*transport_errors(HfHubHTTPError, EntryNotFoundError, OSError)):  # a copy does without
            if not (folder / file).exists() and hub_answers():
                hf_hub_download(repository, file, **where)
    return folder


def hub_answers() -> bool:
    """Whether a connection can be made. The hub's own client tries for half a minute before it says that it cannot."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or set(getproxies()) - {"no"}:  # the client refuses at once, or a proxy decides
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def transport_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """``others``, and what the hub's client lets through of a broken connection, which its HTTP library decides."""
    libraries = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (*others, ConnectionError, *(library.TransportError for library in libraries))


def _fetch_configs(repository: str, revision: str, cache: Path) -> None:
    """Fetch what says how the weights want their images, where the repository has it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in ("config.json", "preprocessor_config.json", "open_clip_config.json"):
        try:
            hf_hub_download(repository, file, cache_dir=cache, revision=revision or None)
        except EntryNotFoundError:
            continue


def _with_shards(path: Path, repository: str, revision: str, cache: Path) -> Path:
    """Fetch the shards that an index names, so that they lie beside it."""
    if path.name.endswith(".index.json"):
        from huggingface_hub import hf_hub_download

        for shard in shard_names(path):
            if not (path.parent / shard).is_file():
                hf_hub_download(repository, shard, cache_dir=cache, revision=revision or None)
    return path
