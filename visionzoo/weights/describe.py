"""Say in a few words what some weights are, from their keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

_VIT_SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1408, 40): "giant",
    (1536, 40): "giant",
    (1152, 27): "so400m",
}
_SWIN_SIZES = {(96, 12): "tiny", (96, 24): "small", (128, 24): "base", (192, 24): "large"}
#: (pattern of a telling key, family), the more special first.
_FAMILIES = (
    (r"visual\.transformer\.resblocks\..*|visual\.layer1\..*", "an OpenAI-style CLIP"),
    (r"visual\.trunk\..*", "an open_clip CLIP with a timm image tower"),
    (r"(mask_decoder|prompt_encoder)\..*", "a SAM"),
    (r"text_model\..*", "a transformers CLIP"),
    (r"model\.layers\..*|transformer\.h\..*", "a language model"),
    (r"layer1\.0\.conv1\.weight", "a ResNet (torchvision or timm)"),
    (r"stages\.0\.blocks\.0\.conv_dw\.weight", "a ConvNeXt of timm"),
    (r"conv_stem\.weight", "an EfficientNet-like network of timm"),
    (r"features\.0\.0\.weight", "a torchvision network"),
    (r"(.*\.)?lora_A.*", "LoRA adapters, which have to be merged into their model first"),
)


def _count(keys: Collection[str], form: str) -> int:
    return len({m[1] for k in keys if (m := re.match(form, k))})


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """For example ``"a ViT of base size (width 768, 12 blocks, patch 16)"``; canonical keys are described best."""
    stem = state.get("patch_embed.proj.weight")
    if stem is not None and stem.ndim == 4:
        width, patch = stem.shape[0], stem.shape[-1]
        if depth := _count(state, r"blocks\.(\d+)\."):
            name = "BEiT" if "blocks.0.attn.q_bias" in state else "DeiT (distilled)" if "dist_token" in state else "ViT"
            size = _VIT_SIZES.get((width, depth))
            return f"a {name}{f' of {size} size' if size else ''} (width {width}, {depth} blocks, patch {patch})"
        if blocks := _count(state, r"layers\.(\d+\.blocks\.\d+)\."):
            name = "Swin v2" if "layers.0.blocks.0.attn.logit_scale" in state else "Swin"
            size = _SWIN_SIZES.get((width, blocks))
            return f"a {name}{f' of {size} size' if size else ''} (width {width}, {blocks} blocks, patch {patch})"
    for form, family in _FAMILIES:
        if any(re.fullmatch(form, k) for k in state):
            return family
    return f"something unknown, with keys such as {', '.join(list(state)[:3]) or 'none at all'}"
