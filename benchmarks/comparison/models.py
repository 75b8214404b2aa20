"""Which models take part: names, what kind they are, their size, their memory format."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import comparison.small  # noqa: F401  registers the networks of the pilot
from visionzoo.backbones import backbone_info, list_backbones
from visionzoo.models.classifier import create_classifier

#: What has self-attention is a ViT, or a hybrid where it has overlapping convolutions too; what has neither is an MLP.
KINDS = ("CNN", "ViT", "hybrid", "MLP")
#: Modules that are called attention and weigh channels or places by what was pooled: they are parts of a CNN.
GATES = re.compile(r"pool|selectivekernel|split|^(light)?(channel|spatial)attn$", re.I)


@dataclass(frozen=True)
class Entry:
    """One model of the comparison."""

    name: str  #: as ``create_classifier`` takes it
    kind: str  #: one of :data:`KINDS`
    params: int  #: with the head
    gmacs: float  #: 1e9 multiply-adds for one image, without the head

    @property
    def label(self) -> str:
        return self.name.removeprefix("timm/")


def resolve(name: str) -> str:
    """The registry's name; a name that is not native is timm's.

    Raises:
        ValueError: for a name that neither knows; the message names near ones.
    """
    native = list_backbones()
    if name in native:
        return name
    ours = list_backbones("timm/*")
    full = name if name.startswith("timm/") else f"timm/{name}"
    if full in ours:
        return full
    bare = full.removeprefix("timm/")
    near = difflib.get_close_matches(bare.lower(), [*native, *(n.removeprefix("timm/") for n in ours)], n=4, cutoff=0.6)
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "`visionzoo models` lists ours"
    raise ValueError(f"there is no model {name!r}, neither ours nor timm's; {hint}")


def describe(name: str, image_size: int, num_classes: int) -> Entry:
    """Build the model without memory and read its size off.

    Raises:
        ValueError: for a name or an input size that does not work.
    """
    try:
        info = backbone_info(name, image_size)
        with torch.device("meta"):
            model = create_classifier(name, num_classes, image_size=image_size)
    except (ValueError, AssertionError, RuntimeError) as error:  # timm asserts, torch fails on impossible shapes
        raise ValueError(f"{name} cannot be built for {image_size} pixels: {str(error).splitlines()[0]}") from error
    params = sum(p.numel() for p in model.parameters())
    return Entry(name, kind_of(model), params, info.gmacs)


def kind_of(model: nn.Module) -> str:
    """One of :data:`KINDS`. Attention in a pooling does not count, nor does the convolution that cuts patches."""
    names = {type(m).__name__ for m in model.modules()}
    attends = any(re.search(r"attention|attn|MLA$", n, re.I) and not GATES.search(n) for n in names)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    convolves = any(m.kernel_size[0] > m.stride[0] for m in convolutions)  # type: ignore[operator]
    return {(True, True): "hybrid", (True, False): "ViT", (False, True): "CNN"}.get((attends, convolves), "MLP")


def use_channels_last(model: nn.Module) -> None:
    """Convert the weights, and every input on its way in."""

    def convert(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].contiguous(memory_format=torch.channels_last), *args[1:])

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.register_forward_pre_hook(convert)
