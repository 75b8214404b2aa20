"""Register, list, describe and create backbones.

This module does not know which backbones exist: ``visionzoo.backbones`` registers them when it is imported, and
re-exports the functions below. Import them from there (or from ``visionzoo``), so that the registry is filled.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visionzoo.facts import backbone_facts
from visionzoo.files import refuse_address
from visionzoo.macs import count_macs
from visionzoo.plugins import load_installed
from visionzoo.types import CAPABILITIES, BackboneInfo

if TYPE_CHECKING:
    from visionzoo.backbones.base import Backbone


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What must be said to register a backbone; the rest of :class:`BackboneInfo` is read off a meta-device copy."""

    name: str
    family: str
    build: Callable[..., Backbone]  #: ``build(image_size=(H, W) | None, in_chans=int, drop_path=float)``
    paper: str
    licence: str
    weights: str | None = None


_SPECS: dict[str, BackboneSpec] = {}
_RESOLVERS: dict[str, tuple[Callable[[str], BackboneSpec], Callable[[str], list[str]]]] = {}


def register_backbone(spec: BackboneSpec) -> None:
    """Add a backbone. Raises ValueError if the name is taken, or belongs to a resolver (``timm/``)."""
    if spec.name in _SPECS or spec.name.startswith(tuple(_RESOLVERS)):
        raise ValueError(f"backbone {spec.name!r} is registered already; choose another name")
    _SPECS[spec.name] = spec


def register_resolver(prefix: str, resolve: Callable[[str], BackboneSpec], names: Callable[[str], list[str]]) -> None:
    """Names that start with ``prefix`` (``"timm/"``) are described by ``resolve(name)`` and are not listed by default.

    Args:
        prefix: what the names start with.
        resolve: raises ValueError for a name that it does not know.
        names: the names that match an fnmatch pattern; asked only for patterns that start with ``prefix``.

    Raises:
        ValueError: if the prefix is taken.
    """
    if prefix in _RESOLVERS:
        raise ValueError(f"the prefix {prefix!r} is registered already; choose another one")
    _RESOLVERS[prefix] = resolve, names


def list_backbones(pattern: str = "*", *, capability: str | None = None) -> list[str]:
    """Names of registered backbones that match an fnmatch ``pattern``, sorted.

    Args:
        pattern: for example ``"vit_*"``. Names behind a resolver are listed only if asked for: ``"timm/resnet*"``.
        capability: keep only backbones that declare it.

    Raises:
        ValueError: for an unknown capability.
    """
    if capability is not None and capability not in CAPABILITIES:
        raise ValueError(f"unknown capability {capability!r}; known are {', '.join(CAPABILITIES)}")
    load_installed()
    names = sorted(n for n in _SPECS if fnmatch.fnmatchcase(n, pattern))
    for prefix, (_, list_names) in _RESOLVERS.items():
        if pattern.startswith(prefix):
            names += list_names(pattern)
    if capability is None:
        return names
    return [n for n in names if capability in _capabilities(n)]


def _capabilities(name: str) -> frozenset[str]:
    known = backbone_facts().get(name)
    return _meta_copy(name, None, 3).capabilities if known is None else known.capabilities


def _spec(name: str) -> BackboneSpec:
    if name not in _SPECS:
        load_installed()
    if name in _SPECS:
        return _SPECS[name]
    for prefix, (resolve, _) in _RESOLVERS.items():
        if name.startswith(prefix):
            return resolve(name)
    if not _SPECS:
        raise ValueError(f"cannot find backbone {name!r}: none is registered; import visionzoo.backbones first")
    refuse_address(name)
    bare = glob.escape(name.partition(".")[0])  # what stands behind a dot is a tag
    near = [n for prefix, (_, names) in _RESOLVERS.items() for n in names(prefix + bare)]
    near = near or difflib.get_close_matches(name.lower(), _SPECS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`visionzoo models` lists them."
    raise ValueError(f"unknown backbone {name!r}; {hint} (any timm model is 'timm/<name>')")


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(s, Integral) and s > 0 for s in size):
        raise ValueError(f"image_size={image_size!r} must be a whole number above 0 or a pair (height, width) of them")
    return int(size[0]), int(size[1])


@cache
def _meta_copy(name: str, image_size: tuple[int, int] | None, in_chans: int) -> Backbone:
    with torch.device("meta"):
        model = _build(name, image_size=image_size, in_chans=in_chans, drop_path=0.0)
    return model.eval().requires_grad_(False)


def _build(name: str, **options: Any) -> Backbone:
    model = _spec(name).build(**options)
    model.name = name
    if not callable(getattr(model, "check_contract", None)):
        raise ValueError(f"the backbone {name!r} is a {type(model).__name__}; it must be a visionzoo.Backbone")
    model.check_contract()
    return model


@cache
def _describe(name: str, image_size: tuple[int, int] | None, in_chans: int) -> BackboneInfo:
    spec, model = _spec(name), _meta_copy(name, image_size, in_chans)
    with torch.no_grad():
        macs = count_macs(lambda: model(torch.zeros(1, in_chans, *model.image_size, device="meta")))
    return BackboneInfo(
        name=name,
        family=spec.family,
        image_size=model.image_size,
        embed_dim=model.num_features,
        pooled_dim=model.pooled_dim,
        grid_dim=model.grid_dim,
        stride=model.stride,
        prefix_tokens=model.num_prefix_tokens,
        params=sum(p.numel() for p in model.parameters()),
        gmacs=macs / 1e9,
        capabilities=model.capabilities,
        preprocess=model.preprocess,
        pyramid=model.pyramid_levels,
        paper=spec.paper,
        licence=spec.licence,
        weights=spec.weights,
    )


def backbone_info(name: str, image_size: int | tuple[int, int] | None = None) -> BackboneInfo:
    """Describe a backbone without allocating its weights. What is registered here is looked up, anything else measured.

    Raises:
        ValueError: for an unknown name; the message suggests near ones.
    """
    known = backbone_facts().get(_spec(name).name) if image_size is None else None
    return measure_backbone(name, image_size) if known is None else known


def measure_backbone(name: str, image_size: int | tuple[int, int] | None = None) -> BackboneInfo:
    """What :func:`backbone_info` says, read off a copy on the meta device.

    Raises:
        ValueError: as :func:`backbone_info`.
    """
    return _describe(name, _size(image_size), 3)


def create_backbone(
    name: str,
    *,
    weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    in_chans_policy: str | None = None,
) -> Backbone:
    """Build a backbone on the current default device, in train mode.

    Args:
        name: a registered name, or ``"timm/<name>"`` for any timm model.
        weights: None for random weights; otherwise whatever :func:`visionzoo.load_weights` takes as a source.
        image_size: pixels, one number or (height, width); None for the size the backbone was trained at.
        in_chans: channels of the images.
        drop_path: stochastic-depth rate of the last block, in [0, 1); earlier blocks get linearly less.
        in_chans_policy: how to turn stored stem weights into ``in_chans`` channels, see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: for an unknown name, a size or channel count that the backbone cannot take, or unfitting weights.
    """
    _spec(name)
    if not isinstance(in_chans, Integral) or in_chans < 1:
        raise ValueError(f"in_chans={in_chans!r} must be a whole number, at least 1")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path} must be in [0, 1)")
    size = _size(image_size)
    model = _build(name, image_size=size, in_chans=in_chans, drop_path=drop_path)
    model.describe = partial(_describe, name, size, in_chans)
    from visionzoo.weights import install_load_hook, load_weights

    install_load_hook(model)
    if weights is not None:
        load_weights(model, weights, in_chans_policy=in_chans_policy)
    return model


def require_capability(model: nn.Module, capability: str, job: str) -> None:
    """Fail at build time when a backbone cannot do a job.

    Raises:
        ValueError: naming the job, the capability, what it means, and registered backbones that have it.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"unknown capability {capability!r}; known are {', '.join(CAPABILITIES)}")
    if capability in model.capabilities:  # type: ignore[operator]
        return
    have = list_backbones(capability=capability)
    shown = ", ".join(have[:6]) + (f" and {len(have) - 6} more" if len(have) > 6 else "")
    raise ValueError(
        f"{job} needs the capability {capability!r} ({CAPABILITIES[capability]}), which {model.name} does not have; "
        f"backbones that have it: {shown or 'none'}"
    )
