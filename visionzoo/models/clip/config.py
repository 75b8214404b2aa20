"""What a CLIP is made of, and the ones that have names.

Names and parts are open_clip's, so that its weights load by name; a test compares them with its configurations.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from visionzoo.layers.mlp import ACTIVATIONS
from visionzoo.types import Preprocess
from visionzoo.weights.preprocessing import STATISTICS

TEXT_POOLS = ("argmax", "eos", "last")
PROJECTIONS = ("linear", "linear_bias", "none")
LOSSES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The parts of a text tower. Everything but the size has the value of CLIP's by default."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    context_length: int = 77
    vocab_size: int = 49408
    causal: bool = True  #: a token attends to those before it; otherwise to all, padding included (SigLIP)
    pool: str = "argmax"  #: the token that is read: of the highest id (CLIP's end token), the first ``eos``, the last
    end_id: int | None = None  #: of the end token, for ``pool="eos"``
    activation: str = "gelu"
    eps: float = 1e-5
    projection_bias: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.vocab_size) < 1 or self.width % self.heads:
            raise ValueError(
                f"a text tower of width {self.width}, {self.layers} layers, {self.heads} heads and {self.vocab_size} "
                "words cannot be built: all must be at least 1, and the width a multiple of the heads"
            )
        if self.context_length < 3:
            raise ValueError(f"context_length={self.context_length} must be at least 3: a start, a word and an end")
        check_activation(self.activation)
        if self.pool not in TEXT_POOLS:
            raise ValueError(f"TextConfig.pool={self.pool!r} must be one of {', '.join(TEXT_POOLS)}")
        if (self.pool == "eos") != (self.end_id is not None):
            raise ValueError(f"pool={self.pool!r} with end_id={self.end_id}: the end token's id belongs to pool='eos'")
        if self.causal and self.pool == "last":
            raise ValueError("pool='last' reads padding, which causal attention does not expect; use 'argmax' or 'eos'")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers and what joins them."""

    backbone: str
    embed_dim: int
    text: TextConfig
    projection: str = "linear"  #: from the image tower's pooled features; ``none`` where they are the embedding
    loss: str = "softmax"  #: what it is trained with; ``sigmoid`` (SigLIP) has a ``logit_bias``
    image_activation: str | None = None  #: None leaves the backbone its own
    preprocess: Preprocess | None = None  #: None for the backbone's own

    def __post_init__(self) -> None:
        for name, allowed in (("projection", PROJECTIONS), ("loss", LOSSES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim={self.embed_dim} must be at least 1")

    def with_activation(self, activation: str) -> ClipConfig:
        """The same network with another activation in both towers; a ResNet keeps its ReLU."""
        check_activation(activation)
        image = None if self.image_activation is None else activation
        return replace(self, image_activation=image, text=replace(self.text, activation=activation))


def check_activation(activation: str) -> None:
    """Raises ValueError for a name that is not in ``ACTIVATIONS``."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")


def stated(preprocess: str | Preprocess | None) -> dict[str, Any]:
    """The fields that a caller states: by a name of ``STATISTICS`` two, by a whole spec all but the size.

    Raises:
        ValueError: for a name that is not in ``STATISTICS``.
    """
    if isinstance(preprocess, Preprocess):
        return {f.name: getattr(preprocess, f.name) for f in fields(Preprocess) if f.name != "image_size"}
    if preprocess is None:
        return {}
    if preprocess not in STATISTICS:
        raise ValueError(f"preprocess={preprocess!r} must be a Preprocess or one of {', '.join(STATISTICS)}")
    return dict(zip(("mean", "std"), STATISTICS[preprocess], strict=True))


def _spec(size: int, name: str, resize_mode: str) -> Preprocess:
    return Preprocess(image_size=(size, size), resize_mode=resize_mode, **stated(name))


#: Text towers: OpenAI's three widths and LAION's, and smaller ones for training from nothing.
TEXT_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 128, "layers": 2, "heads": 4},
    "tiny": {"width": 256, "layers": 4, "heads": 4},
    "small": {"width": 384, "layers": 12, "heads": 6},
    "base": {"width": 512, "layers": 12, "heads": 8},
    "large": {"width": 768, "layers": 12, "heads": 12},
    "huge": {"width": 1024, "layers": 24, "heads": 16},
}
_SIGLIP_TEXT: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "layers": 12, "heads": 12},
    "large": {"width": 1024, "layers": 24, "heads": 16},
    "so400m": {"width": 1152, "layers": 27, "heads": 16, "mlp_ratio": 3.7362},
}
#: SigLIP 2 (arXiv 2502.14786) under open_clip's names: image tower -> image size and text tower. Where timm's tower
#: computes the exact GELU, the released name does.
_SIGLIP2: dict[str, tuple[str, int, str, str]] = {
    "ViT-B-16-SigLIP2": ("base_patch16", 224, "base", "gelu"),
    "ViT-B-16-SigLIP2-256": ("base_patch16", 256, "base", "gelu"),
    "ViT-B-16-SigLIP2-384": ("base_patch16", 384, "base", "gelu"),
    "ViT-B-16-SigLIP2-512": ("base_patch16", 512, "base", "gelu"),
    "ViT-B-32-SigLIP2-256": ("base_patch32", 256, "base", "gelu_tanh"),
    "ViT-L-16-SigLIP2-256": ("large_patch16", 256, "large", "gelu"),
    "ViT-L-16-SigLIP2-384": ("large_patch16", 384, "large", "gelu"),
    "ViT-L-16-SigLIP2-512": ("large_patch16", 512, "large", "gelu_tanh"),
    "ViT-SO400M-14-SigLIP2": ("so400m_patch14", 224, "so400m", "gelu"),
    "ViT-SO400M-14-SigLIP2-378": ("so400m_patch14", 378, "so400m", "gelu"),
    "ViT-SO400M-16-SigLIP2-256": ("so400m_patch16", 256, "so400m", "gelu_tanh"),
    "ViT-SO400M-16-SigLIP2-384": ("so400m_patch16", 384, "so400m", "gelu_tanh"),
    "ViT-SO400M-16-SigLIP2-512": ("so400m_patch16", 512, "so400m", "gelu_tanh"),
    "ViT-gopt-16-SigLIP2-256": ("giantopt_patch16", 256, "so400m", "gelu_tanh"),
    "ViT-gopt-16-SigLIP2-384": ("giantopt_patch16", 384, "so400m", "gelu_tanh"),
}
#: Width of the joint space where it is not the text tower's.
_GOPT_DIM = 1536
QUICK = "-quickgelu"


def _clip(backbone: str, size: int, embed_dim: int, text: str) -> ClipConfig:
    return ClipConfig(
        backbone=backbone,
        embed_dim=embed_dim,
        text=TextConfig(**TEXT_SIZES[text]),
        image_activation="gelu",
        preprocess=_spec(size, "openai", "shortest"),
    )


def _siglip(backbone: str, size: int, text: str, context_length: int = 64) -> ClipConfig:
    parts = _SIGLIP_TEXT[text]
    return ClipConfig(
        backbone=backbone,
        embed_dim=parts["width"],
        text=TextConfig(
            **parts,
            context_length=context_length,
            vocab_size=32000,
            causal=False,
            pool="last",
            eps=1e-6,
            projection_bias=True,
        ),
        projection="none",
        loss="sigmoid",
        image_activation="gelu",
        preprocess=_spec(size, "inception", "squash"),
    )


def _siglip2(tower: str, size: int, text: str, activation: str) -> ClipConfig:
    """Gemma's tokens; texts in lower case, without punctuation, padded to 64."""
    config = _siglip(f"vit_{tower}_siglip_{size}", size, text)
    words = replace(config.text, vocab_size=256000, activation="gelu_tanh")
    width = _GOPT_DIM if tower.startswith("giantopt") else config.embed_dim
    return replace(config, text=words, embed_dim=width, image_activation=activation)


def _named() -> dict[str, ClipConfig]:
    models = {
        "ViT-B-32": _clip("vit_base_patch32_clip_224", 224, 512, "base"),
        "ViT-B-16": _clip("vit_base_patch16_clip_224", 224, 512, "base"),
        "ViT-L-14": _clip("vit_large_patch14_clip_224", 224, 768, "large"),
        "ViT-L-14-336": _clip("vit_large_patch14_clip_336", 336, 768, "large"),
        "ViT-H-14": _clip("vit_huge_patch14_clip_224", 224, 1024, "huge"),
        "ViT-g-14": _clip("vit_giant_patch14_clip_224", 224, 1024, "huge"),
        "RN50": replace(
            _clip("timm/resnet50_clip", 224, 1024, "base"), projection="linear_bias", image_activation=None
        ),
    }
    # The convention of open_clip: a bare name has GELU, OpenAI's own weights want the other.
    models |= {n + QUICK: c.with_activation("quick_gelu") for n, c in models.items() if n != "ViT-g-14"}
    for size in (224, 256, 384, 512):
        name = "ViT-B-16-SigLIP" + ("" if size == 224 else f"-{size}")
        models[name] = _siglip(f"vit_base_patch16_siglip_{size}", size, "base")
    for size in (256, 384):
        models[f"ViT-L-16-SigLIP-{size}"] = _siglip(f"vit_large_patch16_siglip_{size}", size, "large")
    models["ViT-SO400M-14-SigLIP"] = _siglip("vit_so400m_patch14_siglip_224", 224, "so400m", context_length=16)
    models["ViT-SO400M-14-SigLIP-384"] = _siglip("vit_so400m_patch14_siglip_384", 384, "so400m")
    return models | {name: _siglip2(*parts) for name, parts in _SIGLIP2.items()}


#: open_clip's names.
CLIP_MODELS: dict[str, ClipConfig] = _named()


def named_config(name: str) -> ClipConfig:
    """The configuration of a name; ``ViT-B/32``, as OpenAI writes it, is ``ViT-B-32``.

    Raises:
        ValueError: for an unknown name; the message suggests near ones.
    """
    plain = {n.lower(): n for n in CLIP_MODELS}
    found = plain.get(name.replace("/", "-").lower())
    if found is None:
        near = [plain[n] for n in difflib.get_close_matches(name.lower(), plain, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(CLIP_MODELS)}."
        raise ValueError(
            f"unknown CLIP {name!r}; {hint} For another image tower use create_clip(backbone=..., text=...)"
        )
    return CLIP_MODELS[found]


def text_from_open_clip(model_cfg: Mapping[str, Any]) -> TextConfig:
    """The text tower that one of open_clip's model configurations describes.

    Raises:
        ValueError: for parts that this tower does not have, naming them.
    """
    given = dict(model_cfg["text_cfg"])
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        given.pop(key, None)
    act = given.pop("act_kwargs", None) or {}
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu_tanh" if act.get("approximate") else "gelu"
    pool = given.pop("pool_type", "argmax")
    end_id = given.pop("eos_id", None)
    config = TextConfig(
        **{k: given.pop(k) for k in ("mlp_ratio", "context_length", "vocab_size") if k in given},
        width=given.pop("width", 512),
        layers=given.pop("layers", 12),
        heads=given.pop("heads", 8),
        causal=not given.pop("no_causal_mask", False),
        pool=pool,
        end_id=end_id if pool == "eos" else None,
        activation=activation,
        eps=(given.pop("norm_kwargs", None) or {}).get("eps", 1e-5),
        projection_bias=given.pop("proj_bias", False),
    )
    if unknown := sorted(k for k, v in given.items() if v not in (None, False)):
        raise ValueError(f"open_clip's text tower with {', '.join(unknown)} is not one that visionzoo has")
    return config


def text_to_open_clip(config: TextConfig) -> dict[str, Any]:
    """The ``text_cfg`` that describes a text tower to open_clip; ``quick_gelu`` is said outside it."""
    found: dict[str, Any] = {
        "width": config.width,
        "layers": config.layers,
        "heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "no_causal_mask": not config.causal,
        "pool_type": config.pool,
        "proj_bias": config.projection_bias,
        "norm_kwargs": {"eps": config.eps},
    }
    if config.end_id is not None:
        found["eos_id"] = config.end_id
    if config.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    return found
