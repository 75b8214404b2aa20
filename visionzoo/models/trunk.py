"""The backbone inside a model on disk, whatever the task it was trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.models.bundle import ModelConfig, filled, read_config
from visionzoo.models.clip.config import named_config
from visionzoo.models.mae import MAE_BACKBONES


def trunk_name(config: ModelConfig) -> str:
    """The registered name of the backbone that a configuration builds.

    Raises:
        ValueError: for a configuration that names none.
    """
    known = config.architecture
    if config.task == "clip" and known.get("name") is not None:
        clip = named_config(known["name"]).with_activation(known.get("activation") or "gelu")
        # another activation is another function under the same weights: timm has a name for each
        quick = clip.image_activation == "quick_gelu"
        return clip.backbone.replace("_clip_", "_clip_quickgelu_") if quick else clip.backbone
    name = known.get("backbone")
    if not isinstance(name, str):
        raise ValueError(f"the model of task {config.task!r} does not say which backbone it has")
    return MAE_BACKBONES.get(name, name)


def load_trunk(folder: str | Path) -> Backbone:
    """The trained backbone of a run or another folder with ``model.safetensors`` and ``config.json``, in eval mode.

    Its size, channels, pooling and preprocessing are those it was trained with; heads and decoders stay behind.

    Raises:
        FileNotFoundError: if there is no such folder, or no exported model in it.
        ValueError: for a damaged file.
    """
    config = read_config(folder)
    known: dict[str, Any] = config.architecture
    size = known.get("image_size")

    def build() -> Backbone:
        backbone = create_backbone(
            trunk_name(config),
            image_size=tuple(size) if isinstance(size, list) else size,
            in_chans=known.get("in_chans", 3),
        )
        if known.get("global_pool") is not None:
            backbone.reset_classifier(0, known["global_pool"])
        return backbone

    return filled(build, config, Path(folder))
