"""A CLIP to ask, from wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from visionzoo.inference.device import resolve_device
from visionzoo.models.bundle import CONFIG_FILE, load_bundle, read_config
from visionzoo.models.clip import Clip, create_clip
from visionzoo.weights.preprocessing import read_json


def load_clip(source: str | Path, device: str | torch.device | None = None) -> tuple[Clip, tuple[str, ...]]:
    """A CLIP in eval mode, and the labels that were saved with it, if any.

    Args:
        source: a run folder of a CLIP, a folder with weights of open_clip or transformers and their configuration, or
            ``hf-hub:org/name``.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: for a model of another task, or one whose configuration is unknown.
    """
    device = resolve_device(device)
    folder = Path(source)
    if os.path.isdir(folder) and "schema_version" in read_json(folder / CONFIG_FILE):
        if (task := read_config(folder).task) != "clip":
            raise ValueError(f"{source} holds a model of task {task!r}, not a CLIP")
        model, config = load_bundle(folder, device=device)
        assert isinstance(model, Clip)
        return model, config.labels
    return create_clip(weights=str(source)).to(device).eval(), ()
