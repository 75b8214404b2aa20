"""All backbones. Importing this package fills the registry; timm itself is imported only when a ``timm/`` name is used."""

import visionzoo.backbones.vit_variants  # noqa: F401  registers the native ViTs
from visionzoo.pool import shared_backbone
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
    "backbone_info",
    "create_backbone",
    "list_backbones",
    "register_backbone",
    "register_resolver",
    "require_capability",
    "shared_backbone",
]
