"""All backbones. Importing this package fills the registry; timm is imported only when a ``timm/`` name is used."""

import visionzoo.backbones.beit  # registers BEiT and BEiT v2
import visionzoo.backbones.swin_variants  # registers the native Swins
import visionzoo.backbones.vit_rope  # registers DINOv3 and the RoPE ViTs
import visionzoo.backbones.vit_variants  # registers the native ViTs
import visionzoo.backbones.vitdet  # noqa: F401  registers SAM's windowed encoder
from visionzoo.pool import SharedBackbone, pool_report, shared_backbone
from visionzoo.registry import (
    BackboneSpec,
    backbone_info,
    create_backbone,
    list_backbones,
    register_backbone,
    register_resolver,
    require_capability,
)

__all__ = [
    "BackboneSpec",
    "SharedBackbone",
    "backbone_info",
    "create_backbone",
    "list_backbones",
    "pool_report",
    "register_backbone",
    "register_resolver",
    "require_capability",
    "shared_backbone",
]


def _timm_spec(name: str) -> BackboneSpec:
    from visionzoo.backbones.timm_adapter import timm_spec

    return timm_spec(name)


def _timm_names(pattern: str) -> list[str]:
    from visionzoo.backbones.timm_adapter import timm_names

    return timm_names(pattern)


register_resolver("timm/", _timm_spec, _timm_names)
