"""One adapter per foreign weight layout, each pure and both ways: ``to_timm(sd)``, ``from_timm(sd, facts)``."""

from __future__ import annotations

import difflib

from visionzoo.weights.adapters.beit import BEIT
from visionzoo.weights.adapters.clip import CLIP_LAYOUTS
from visionzoo.weights.adapters.clip_tower import CLIP_TOWER
from visionzoo.weights.adapters.deit import DEIT
from visionzoo.weights.adapters.dino import DINO, DINOV2, DINOV3
from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.mae import MAE, MAE_LAYOUTS
from visionzoo.weights.adapters.moco import MOCO_V3
from visionzoo.weights.adapters.rules import Facts
from visionzoo.weights.adapters.sam import SAM_LAYOUTS
from visionzoo.weights.adapters.swin import SWIN
from visionzoo.weights.adapters.torchvision import TORCHVISION_SWIN, TORCHVISION_VIT
from visionzoo.weights.adapters.transformers_clip import TRANSFORMERS_CLIP_LAYOUTS
from visionzoo.weights.adapters.transformers_dino import TRANSFORMERS_DINO_LAYOUTS
from visionzoo.weights.adapters.transformers_swin import TRANSFORMERS_SWIN_LAYOUTS
from visionzoo.weights.adapters.transformers_vit import TRANSFORMERS_VIT_LAYOUTS
from visionzoo.weights.adapters.vit_jax import VIT_JAX

__all__ = ["LAYOUTS", "Facts", "Layout", "layouts_named"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        VIT_JAX,
        DEIT,
        MAE,
        DINO,
        DINOV2,
        DINOV3,
        MOCO_V3,
        BEIT,
        CLIP_TOWER,
        SWIN,
        TORCHVISION_VIT,
        TORCHVISION_SWIN,
        *TRANSFORMERS_VIT_LAYOUTS,
        *TRANSFORMERS_DINO_LAYOUTS,
        *TRANSFORMERS_SWIN_LAYOUTS,
        *MAE_LAYOUTS,
        *SAM_LAYOUTS,
        *CLIP_LAYOUTS,
        *TRANSFORMERS_CLIP_LAYOUTS,
    )
}
#: Names for whole libraries: whichever of their layouts holds the model.
LIBRARIES = ("transformers", "transformers5", "torchvision", "open_clip")
#: Layouts of transformers whose names are the same in files and in memory.
_BOTH_VERSIONS = ("transformers_swinv2", "transformers_clip", "transformers_siglip")


def layouts_named(name: str, family: str) -> list[Layout]:
    """The layouts that ``name`` may mean for a model of ``family``; a library's name means all of its layouts.

    Raises:
        ValueError: for an unknown name, or one whose layouts are for other families.
    """
    fitting = [layout for layout in LAYOUTS.values() if family in (layout.family, "timm")]
    if name in LIBRARIES:
        found = [layout for layout in fitting if layout.name.startswith(f"{name}_")]
        if name == "transformers5":
            found += [layout for layout in fitting if layout.name in _BOTH_VERSIONS]
    elif name in LAYOUTS:
        found = [layout for layout in fitting if layout.name == name]
    else:
        near = difflib.get_close_matches(name, ["timm", *LAYOUTS, *LIBRARIES], n=3, cutoff=0.4)
        raise ValueError(
            f"unknown layout {name!r}; did you mean {' or '.join(near) or 'timm'}? "
            f"Known: {', '.join(['timm', *LIBRARIES, *LAYOUTS])}"
        )
    if not found:
        names = ", ".join(["timm", *(layout.name for layout in fitting)])
        raise ValueError(f"the layout {name!r} is not for models of the family {family!r}; these are: {names}")
    return found
