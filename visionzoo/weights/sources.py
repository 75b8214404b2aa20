"""From what a user names to a weights file on this machine."""

from __future__ import annotations

import difflib
from pathlib import Path

from visionzoo.embedded import embedded_source
from visionzoo.files import similar_names
from visionzoo.weights.hub import HUB_PREFIX, WEIGHT_FILES, from_hub

TIMM_PREFIX = "timm:"


def resolve_source(source: str | Path, *, first: tuple[str, ...] = ()) -> Path:
    """The weights file that ``source`` names.

    Args:
        source: a file; a folder (a run folder, or one in the layout of the model hubs); ``embedded:NAME``, which comes
            with the package; ``hf-hub:org/name`` or ``hf-hub:org/name@revision``; ``timm:<name>`` or
            ``timm:<name>.<tag>``. Of a hub name, a copy in the local cache is used as it is, without asking the
            network.
        first: names of files that are taken rather than others, where a folder or repository has several.

    Raises:
        FileNotFoundError: when there is no such file, folder, repository or weights file in it, or the hub cannot be
            reached.
        ValueError: for a malformed name.
    """
    source = embedded_source(source)
    text = str(source)
    if text.startswith(HUB_PREFIX):
        return from_hub(text.removeprefix(HUB_PREFIX), first)
    if text.startswith(TIMM_PREFIX):
        return from_hub(_timm_repository(text.removeprefix(TIMM_PREFIX)), first)
    if "://" in text:
        raise ValueError(f"{text!r} is an address; download the file and give its path, or name it as hf-hub:org/name")
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, first)
    if path.is_file():
        return path
    raise FileNotFoundError(f"there are no weights at {text!r}; {_near(path)}")


def _near(path: Path) -> str:
    """What to try instead of a path that is not there."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent
    here = {p.name: p for p in folder.iterdir()}
    near = similar_names(path.name, here)
    if near:
        return f"did you mean {' or '.join(str(here[n]) for n in near)}?"
    shown = ", ".join(sorted(n for n in here if not n.startswith("."))[:6]) or "nothing"
    return (
        f"the folder {folder} holds {shown}. Give a file, a folder, 'hf-hub:org/name' or 'timm:name' "
        "('timm/name' is the name of a backbone, not of weights)"
    )


def _in_folder(folder: Path, first: tuple[str, ...]) -> Path:
    names = {p.name for p in folder.iterdir()}
    for name in (*first, *WEIGHT_FILES):
        if name in names:
            return folder / name
    clip = sorted(n for n in names if n.startswith("open_clip_") and n.endswith((".safetensors", ".bin")))
    if len(clip) == 1:
        return folder / clip[0]
    if checkpoints := sorted(n for n in names if n.endswith(".ckpt")):
        raise FileNotFoundError(
            f"{folder} has no exported weights (model.safetensors), perhaps because its run did not end; "
            f"name a checkpoint: {' or '.join(str(folder / n) for n in checkpoints)}"
        )
    others = sorted(n for n in names if n.endswith((".safetensors", ".pt", ".pth", ".bin", ".npz")))
    hint = f"name one of {', '.join(others)}" if others else f"expected one of {', '.join(WEIGHT_FILES)}"
    raise FileNotFoundError(f"{folder} has no weights file under a known name; {hint}")


def _timm_repository(name: str) -> str:
    """``org/name`` of the hub repository that timm keeps for a model name, with or without a tag.

    Raises:
        ValueError: for a name or tag that timm does not know, or one without published weights.
    """
    import timm
    from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"timm has no model {architecture!r}; did you mean {' or '.join(near) or 'another name'}?")
    tags = [n for n in timm.list_pretrained(architecture) if n.split(".")[0] == architecture]
    if not tags:
        raise ValueError(f"timm publishes no weights for {architecture!r}")
    if tag and name not in tags:
        raise ValueError(f"timm has no weights {name!r}; it has {', '.join(tags)}")
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm does not keep {name!r} on the hub; download its file and give the path")
    repository = config.hf_hub_id
    full = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return repository + full if repository.endswith("/") else str(repository)
