"""A CLIP to ask, from wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from visionzoo.inference.device import resolve_device
from visionzoo.models.bundle import CONFIG_FILE, load_bundle, read_config
from visionzoo.models.clip import Clip, create_clip
from visionzoo.models.clip.config import CLIP_MODELS
from visionzoo.weights.local import local_source
from visionzoo.weights.preprocessing import read_json


def load_clip(
    source: str | Path, device: str | torch.device | None = None, *, weights: str | Path | None = None
) -> tuple[Clip, tuple[str, ...]]:
    """A CLIP in eval mode, and the labels that were saved with it, if any.

    Args:
        source: a run folder of a CLIP, a folder with weights of open_clip or transformers and their configuration,
            ``embedded`` for the one that comes with the package, or ``hf-hub:org/name``; or a name such as
            ``ViT-B-32``, with ``weights``.
        device: None for a GPU where there is one, otherwise the CPU.
        weights: of a name.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: for a model of another task, one whose configuration is unknown, or a name without weights.
    """
    device, source = resolve_device(device), local_source(source, "clip")
    if weights is not None:
        return create_clip(str(source), weights=weights).to(device).eval(), ()
    if str(source).replace("/", "-").lower() in {name.lower() for name in CLIP_MODELS} and not os.path.exists(source):
        raise ValueError(
            f"{source} is the name of a CLIP, and needs weights: --model {source} --weights FILE; or name weights that "
            "say what they are, such as --model hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        )
    folder = Path(source)
    if os.path.isdir(folder) and "schema_version" in read_json(folder / CONFIG_FILE):
        if (task := read_config(folder).task) != "clip":
            raise ValueError(f"{source} holds a model of task {task!r}, not a CLIP")
        model, config = load_bundle(folder, device=device)
        assert isinstance(model, Clip)
        return model, config.labels
    return create_clip(weights=str(source)).to(device).eval(), ()
