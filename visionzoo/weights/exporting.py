"""Write a model's weights in its own layout or a foreign one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visionzoo.weights.adapters import Facts, layouts_named
from visionzoo.weights.writing import write_npz, write_safetensors


def facts_of(model: nn.Module) -> Facts:
    """What foreign layouts need to know of a model beyond its tensors, native or from timm."""

    def first(name: str) -> Any:
        return next(
            (getattr(m, name) for m in model.modules() if isinstance(getattr(m, name, None), int | tuple)), None
        )

    window = first("window_size") or first("window")  # timm's name, ours
    size = getattr(model, "image_size", None) or first("img_size")
    positions = getattr(model, "num_prefix_positions", None)
    if positions is None and hasattr(model, "num_prefix_tokens"):
        positions = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    return Facts(
        num_heads=first("num_heads"),
        window_size=window[0] if isinstance(window, tuple) else window,
        image_size=(size, size) if isinstance(size, int) else size,
        prefix_positions=positions if isinstance(positions, int) else None,
    )


def export_weights(model: nn.Module, path: str | Path, layout: str = "timm") -> Path:
    """Write the weights of ``model`` to ``path``, atomically.

    Args:
        model: a backbone, or a model with its attributes.
        path: ``*.safetensors``, or ``*.npz`` (what google-research's code reads).
        layout: ``timm``, the name of an adapter such as ``torchvision_vit``, or of a library (``transformers``,
            ``torchvision``), which means whichever of its layouts holds this model.

    Returns:
        The path.

    Raises:
        ValueError: for an unknown layout, one that has no place for this model's tensors, or another suffix.
        OSError: when the file cannot be written; an earlier one stays as it was.
    """
    target = Path(path)
    if target.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"weights are written as .safetensors or .npz, not {target.suffix!r}: {target}")
    tensors: dict[str, Tensor] = model.state_dict()
    if layout != "timm":
        tensors = _converted(model, tensors, layout)
    if target.suffix == ".npz":
        write_npz(tensors, target)
    else:
        describe = getattr(model, "weights_metadata", dict)
        write_safetensors(tensors, target, {"layout": layout, **describe()})
    return target


def _converted(model: nn.Module, tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    reasons = []
    for layout in layouts_named(name, str(model.weights_family)):
        try:
            return layout.from_timm(tensors, facts_of(model))
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(
        f"cannot write {getattr(model, 'name', 'this model')} in the layout {name!r}: {'; '.join(reasons)}"
    )
