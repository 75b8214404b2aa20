"""Every named Swin: its parts, and how its published weights want their images.

Names, parts and preprocessing are timm's (a test compares them with the installed timm), so that its weights load by
name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from visionzoo.backbones.swin import SwinConfig, SwinTransformer
from visionzoo.registry import BackboneSpec, register_backbone
from visionzoo.types import Preprocess

#: Widths of the standard sizes (arXiv 2103.14030, section 3.3).
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "patch_size": 2},
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

FINETUNED = "ms_in22k_ft_in1k"
#: name, version, size, window, pixels, timm's tag of the published weights
VARIANTS: tuple[tuple[str, int, str, int, int, str | None], ...] = (
    ("swin_nano_patch2_window4_32", 1, "nano", 4, 32, None),
    ("swin_tiny_patch4_window7_224", 1, "tiny", 7, 224, "ms_in1k"),
    ("swin_small_patch4_window7_224", 1, "small", 7, 224, FINETUNED),
    ("swin_base_patch4_window7_224", 1, "base", 7, 224, FINETUNED),
    ("swin_base_patch4_window12_384", 1, "base", 12, 384, FINETUNED),
    ("swin_large_patch4_window7_224", 1, "large", 7, 224, FINETUNED),
    ("swin_large_patch4_window12_384", 1, "large", 12, 384, FINETUNED),
    ("swinv2_nano_patch2_window4_32", 2, "nano", 4, 32, None),
    ("swinv2_tiny_window8_256", 2, "tiny", 8, 256, "ms_in1k"),
    ("swinv2_tiny_window16_256", 2, "tiny", 16, 256, "ms_in1k"),
    ("swinv2_small_window8_256", 2, "small", 8, 256, "ms_in1k"),
    ("swinv2_small_window16_256", 2, "small", 16, 256, "ms_in1k"),
    ("swinv2_base_window8_256", 2, "base", 8, 256, "ms_in1k"),
    ("swinv2_base_window16_256", 2, "base", 16, 256, "ms_in1k"),
    ("swinv2_base_window12_192", 2, "base", 12, 192, "ms_in22k"),
    ("swinv2_base_window12to16_192to256", 2, "base", 16, 256, FINETUNED),
    ("swinv2_base_window12to24_192to384", 2, "base", 24, 384, FINETUNED),
    ("swinv2_large_window12_192", 2, "large", 12, 192, "ms_in22k"),
    ("swinv2_large_window12to16_192to256", 2, "large", 16, 256, FINETUNED),
    ("swinv2_large_window12to24_192to384", 2, "large", 24, 384, FINETUNED),
)


def _register(name: str, version: int, size: str, window: int, pixels: int, tag: str | None) -> None:
    # Models fine-tuned with larger windows keep the distances of their pretraining at 192 pixels.
    pretrained = (12, 12, 12, 6) if "window12to" in name else ()
    config = SwinConfig(version=version, window=window, pretrained_windows=pretrained, **SIZES[size])
    # timm's figures: no border is cut off at 384 pixels
    crop = 0.9 if tag and pixels < 384 else 1.0
    preprocess = Preprocess(image_size=(pixels, pixels), crop_pct=crop)
    register_backbone(
        BackboneSpec(
            name=name,
            family="swin" if version == 1 else "swinv2",
            build=partial(SwinTransformer, config, preprocess),
            paper="arXiv 2103.14030" if version == 1 else "arXiv 2111.09883",
            licence="mit" if tag else "none published",
            weights=f"timm:{name}.{tag}" if tag else None,
        )
    )


for _variant in VARIANTS:
    _register(*_variant)
