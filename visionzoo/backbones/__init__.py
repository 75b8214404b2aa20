"""All backbones. Importing this package fills the registry; timm is imported only when a ``timm/`` name is used."""

import visionzoo.backbones.swin_variants  # registers the native Swins
import visionzoo.backbones.vit_variants  # noqa: F401  registers the native ViTs
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
