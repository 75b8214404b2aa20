"""Build a CLIP by name, or around any backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from visionzoo.backbones import create_backbone
from visionzoo.models.clip.config import (
    CLIP_MODELS,
    TEXT_SIZES,
    ClipConfig,
    TextConfig,
    named_config,
    stated,
)
from visionzoo.models.clip.identify import identify
from visionzoo.models.clip.image import ImageTower, set_activation
from visionzoo.models.clip.model import Clip
from visionzoo.models.clip.text import TextTower
from visionzoo.models.clip.tokenizer import vocabulary
from visionzoo.types import Preprocess
from visionzoo.weights import install_load_hook, load_weights
from visionzoo.weights.local import local_source
from visionzoo.weights.preprocessing import decide_preprocess


def create_clip(
    name: str | Path | None = None,
    *,
    backbone: str | None = None,
    weights: Any = None,
    image_weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    activation: str | None = None,
    preprocess: str | Preprocess | None = None,
    embed_dim: int | None = None,
    text: str | None = None,
    text_width: int | None = None,
    text_layers: int | None = None,
    text_heads: int | None = None,
    context_length: int | None = None,
    vocab_size: int | None = None,
    end_id: int | None = None,
    loss: str | None = None,
    tokenizer: str | Path | None = None,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    in_chans_policy: str | None = None,
) -> Clip:
    """Build a CLIP: either one with a name, or any backbone with a text tower beside it.

    Args:
        name: open_clip's name, such as ``ViT-B-32``, ``ViT-L-14-336-quickgelu``, ``RN50-quickgelu``,
            ``ViT-B-16-SigLIP``. As there, a bare name computes GELU; OpenAI's weights want ``-quickgelu``. None, and no
            backbone, where a configuration beside ``weights`` says which model it is; a folder in place of a name (a
            run, or released weights with their configuration) stands for that.
        backbone: instead of a name: a registered backbone, or ``timm/<name>``.
        weights: None for random weights; otherwise a source for :func:`visionzoo.load_weights`, both towers, or
            ``embedded`` for the one that comes with the package.
        image_weights: the same, for the backbone alone: a MAE of ours, a classifier, ``timm:<tag>``.
        image_size: pixels, one number or (height, width); None for the size it was trained at.
        in_chans: channels of the images.
        activation: ``gelu``, ``quick_gelu`` or ``gelu_tanh``, as the weights were trained, in both towers of a named
            model and in the text tower of another; None for what the name says, or ``gelu``.
        preprocess: image statistics that the weights were trained with: ``openai``, ``imagenet``, ``inception`` or a
            whole :class:`Preprocess`; None for those of the name, or the backbone's.
        embed_dim: with ``backbone``: width of the joint space; None for the text tower's.
        text: with ``backbone``: size of the text tower, one of ``nano``, ``tiny``, ``small``, ``base``, ``large``,
            ``huge``; None for ``small``.
        text_width: with ``backbone``: width instead of the size's.
        text_layers: with ``backbone``: blocks instead of the size's.
        text_heads: with ``backbone``: heads instead of the size's.
        context_length: with ``backbone``: tokens of a text, start and end included; None for 77.
        vocab_size: with ``backbone``: number of tokens; None for those of ``tokenizer``.
        end_id: with ``backbone``: id of the end token, where it is not the highest id, as with most tokenizers of
            transformers; None for that of ``tokenizer``, or, with a ``vocab_size``, CLIP's rule.
        loss: with ``backbone``: ``softmax`` (CLIP) or ``sigmoid`` (SigLIP, which has a bias); None for ``softmax``.
        tokenizer: ``clip`` for CLIP's byte pairs, or a folder with a tokenizer of transformers; None for ``clip``
            where the vocabulary is CLIP's.
        drop_path: stochastic-depth rate of the image tower's last block.
        patch_dropout: share of the patches that are left out in training (FLIP), in [0, 1).
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        FileNotFoundError: for weights or a tokenizer that are not there.
        ValueError: for an unknown name or backbone, neither or both of them, an option that the named model fixes,
            weights that do not fit, or weights whose activation or preprocessing contradicts this, or is unknown.
    """
    parts = {
        "embed_dim": embed_dim,
        "text": text,
        "text_width": text_width,
        "text_layers": text_layers,
        "text_heads": text_heads,
        "context_length": context_length,
        "vocab_size": vocab_size,
        "end_id": end_id,
        "loss": loss,
    }
    name, weights = local_source(name, "clip"), local_source(weights, "clip")
    if name is not None and os.path.isdir(name):
        if weights is not None:
            raise ValueError(f"{name} is a folder with weights of its own; leave weights={weights} out")
        name, weights = None, name
    name = None if name is None else str(name)
    if name is None and backbone is None and isinstance(weights, str | Path):
        found = identify(weights)
        name, backbone = found.get("name"), found.get("backbone")
        parts = {k: found.get(k) if v is None else v for k, v in parts.items()}
        activation, tokenizer = activation or found.get("activation"), tokenizer or found.get("tokenizer")
        image_size, in_chans = image_size or found.get("image_size"), found.get("in_chans", in_chans)
    said = weights is not None or parts["vocab_size"] is not None or parts["end_id"] is not None
    if name is None and tokenizer not in (None, "", "clip") and not said:
        parts |= vocabulary(tokenizer)
    config = _config(name, backbone, {k: v for k, v in parts.items() if v is not None})
    if activation is not None:
        config = config.with_activation(activation)
    tokenizer = str(tokenizer) if tokenizer is not None else "clip" if config.text.vocab_size == 49408 else ""
    model = build_clip(
        config,
        image_size=image_size,
        in_chans=in_chans,
        drop_path=drop_path,
        patch_dropout=patch_dropout,
        tokenizer=tokenizer,
        name=name,
        said=stated(preprocess),
    )
    model.stated = _stated(name, config, activation, preprocess)
    model.architecture = {
        "name": name,
        "backbone": backbone,
        **parts,
        "activation": config.text.activation,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "in_chans": in_chans,
        "tokenizer": tokenizer or None,
        "drop_path": drop_path,
        "patch_dropout": patch_dropout,
    }
    install_load_hook(model)
    if image_weights is not None:
        load_weights(model.visual.trunk, image_weights, in_chans_policy=in_chans_policy)
    if weights is not None:
        load_weights(model, weights, in_chans_policy=in_chans_policy)
    return model


def build_clip(
    config: ClipConfig,
    *,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    patch_dropout: float = 0.0,
    tokenizer: str = "clip",
    name: str | None = None,
    said: Mapping[str, Any] = MappingProxyType({}),
) -> Clip:
    """The network of a configuration, with random weights; the arguments are :func:`create_clip`'s, and ``said`` the
    fields of the preprocessing that its caller stated."""
    if image_size is None and config.preprocess is not None:
        image_size = config.preprocess.image_size
    trunk = create_backbone(config.backbone, image_size=image_size, in_chans=in_chans, drop_path=drop_path)
    if config.image_activation is not None:
        set_activation(trunk, config.image_activation)
    default = replace(config.preprocess or trunk.preprocess, image_size=trunk.image_size)
    trunk.said_preprocess = dict(said)
    visual = ImageTower(trunk, config.embed_dim, config.projection, patch_dropout)
    return Clip(
        visual,
        TextTower(config.text, config.embed_dim),
        loss=config.loss,
        preprocess=decide_preprocess(default, said=said),
        tokenizer=tokenizer,
        name=name or f"CLIP of {config.backbone}",
    )


def _config(name: str | None, backbone: str | None, parts: dict[str, Any]) -> ClipConfig:
    if (name is None) == (backbone is None):
        raise ValueError(
            "create_clip takes a name or a backbone: create_clip('ViT-B-32'), or create_clip(backbone="
            f"'vit_small_patch16_224', text='small'); names are {', '.join(CLIP_MODELS)}"
        )
    if name is not None:
        if parts:
            raise ValueError(
                f"{name} fixes {', '.join(parts)}; leave them out, or build one of your own with backbone=..."
            )
        return named_config(name)
    assert backbone is not None
    size = parts.get("text", "small")
    if size not in TEXT_SIZES:
        raise ValueError(f"text={size!r} must be one of {', '.join(TEXT_SIZES)}")
    own = {k: parts.get(f"text_{k}", v) for k, v in TEXT_SIZES[size].items()}
    own |= {k: parts[k] for k in ("context_length", "vocab_size", "end_id") if k in parts}
    text = TextConfig(**own, pool="eos" if "end_id" in parts else "argmax")
    return ClipConfig(
        backbone=backbone,
        embed_dim=parts.get("embed_dim", text.width),
        text=text,
        loss=parts.get("loss", "softmax"),
    )


def _stated(
    name: str | None, config: ClipConfig, activation: str | None, preprocess: str | Preprocess | None
) -> frozenset[str]:
    """What this call says of its weights, so that it need not be asked for."""
    if name is None:
        return frozenset({"activation", "preprocess"})  # no published weights: the caller chose every part
    said = set()
    if activation is not None or config.text.activation == "quick_gelu":
        said.add("activation")
    if preprocess is not None or config.loss == "sigmoid":  # all SigLIPs were trained on the same statistics
        said.add("preprocess")
    return frozenset(said)
