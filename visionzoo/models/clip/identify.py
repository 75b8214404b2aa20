"""Which CLIP some weights are, from the configuration that lies beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from visionzoo.backbones import create_backbone
from visionzoo.backbones.vit import VisionTransformer
from visionzoo.models.bundle import read_config
from visionzoo.models.clip.config import CLIP_MODELS, ClipConfig, TextConfig, text_from_open_clip
from visionzoo.models.clip.model import Clip
from visionzoo.weights.clip_record import transformers_activation
from visionzoo.weights.preprocessing import description_of, read_json
from visionzoo.weights.sources import resolve_source

#: What transformers' configurations leave out because it is their default: CLIP's ViT-B-32, SigLIP's ViT-B-16.
_TEXT = {"clip": (512, 12, 8, 77, 49408), "siglip": (768, 12, 12, 64, 32000)}
_TEXT_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")
_VISION_NAMES = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
_VISION = {"clip": (768, 12, 32, 224), "siglip": (768, 12, 16, 224)}


def identify(source: str | Path) -> dict[str, Any]:
    """The arguments of :func:`visionzoo.create_clip` that build the model whose weights ``source`` names.

    Args:
        source: a folder, file or hub name with ``config.json`` (ours or transformers') or ``open_clip_config.json``
            beside the weights.

    Raises:
        FileNotFoundError: when the source is not there.
        ValueError: when nothing says what it is, or it is no model that has a name here.
    """
    path = resolve_source(source, first=Clip.weight_files)
    with description_of(source):
        return _identify(source, path)


def _identify(source: str | Path, path: Path) -> dict[str, Any]:
    own = read_json(path.with_name("config.json"))
    if "schema_version" in own:
        config = read_config(path.parent)
        if config.task != "clip":
            raise ValueError(f"{source} holds a model of task {config.task!r}, not a CLIP")
        return dict(config.architecture)
    theirs = read_json(path.with_name("open_clip_config.json"))
    if (path.name.startswith("open_clip") or not own) and "model_cfg" in theirs:
        found = _open_clip(theirs["model_cfg"])
    elif own.get("model_type") in _TEXT:
        found = _transformers(own, str(source))
    else:
        raise ValueError(
            f"nothing beside {path} says which CLIP it is; give its name: create_clip('ViT-B-32', weights=...), one of "
            f"{', '.join(CLIP_MODELS)}"
        )
    if found is None:
        raise ValueError(f"{source} is a CLIP that has no name here; known are {', '.join(CLIP_MODELS)}")
    if path.with_name("tokenizer_config.json").is_file() and CLIP_MODELS[found["name"]].text.vocab_size != 49408:
        found["tokenizer"] = str(path.parent)
    return found


def _open_clip(model_cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    text, vision = text_from_open_clip(model_cfg), model_cfg["vision_cfg"]
    for name, config in CLIP_MODELS.items():
        if (text, model_cfg["embed_dim"]) != (config.text, config.embed_dim) or config.preprocess is None:
            continue
        if vision.get("image_size", 224) != config.preprocess.image_size[0]:
            continue
        layers = vision.get("layers", 12)
        if "timm_model_name" in vision:
            same = vision["timm_model_name"] == config.backbone
        elif isinstance(layers, int):
            same = _has_trunk(config, vision.get("width", 768), layers, vision.get("patch_size", 16))
        else:
            same = config.backbone == "timm/resnet50_clip" and list(layers) == [3, 4, 6, 3]
        if same:
            return {"name": name}
    return None


def _transformers(own: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    kind = own["model_type"]
    words, pixels = own.get("text_config") or {}, own.get("vision_config") or {}
    text = tuple(words.get(n, d) for n, d in zip(_TEXT_NAMES, _TEXT[kind], strict=True))
    width, layers, patch, size = (pixels.get(n, d) for n, d in zip(_VISION_NAMES, _VISION[kind], strict=True))
    activation = transformers_activation(own, source)
    for name, config in CLIP_MODELS.items():
        if config.preprocess is None or text != _size(config.text) or size != config.preprocess.image_size[0]:
            continue
        plain = config.text.activation in (activation, "gelu" if kind == "siglip" else activation)
        if plain and _has_trunk(config, width, layers, patch):
            return {"name": name, "activation": activation}
    return None


def _size(text: TextConfig) -> tuple[int, ...]:
    return text.width, text.layers, text.heads, text.context_length, text.vocab_size


def _has_trunk(config: ClipConfig, width: int, layers: int, patch: int) -> bool:
    with torch.device("meta"):
        trunk = create_backbone(config.backbone)
    return isinstance(trunk, VisionTransformer) and (width, layers, patch) == (
        trunk.embed_dim,
        len(trunk.blocks),
        trunk.stride,
    )
