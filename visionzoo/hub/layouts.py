"""A model as a folder that timm or open_clip opens: their configuration beside weights under their names.

What is written is opened with them before it counts, and must answer as our model does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.files import write_json
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.clip.config import text_to_open_clip
from visionzoo.models.clip.model import Clip
from visionzoo.types import Preprocess
from visionzoo.weights import write_safetensors
from visionzoo.weights.preprocessing import RESIZE_MODES

#: Largest difference to our answers, relative to the largest of them.
TOLERANCE = 1e-4


def write_timm(model: Backbone, config: ModelConfig, folder: Path) -> None:
    """``config.json`` and ``model.safetensors`` for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    Raises:
        ValueError: for a network that timm has not, or that answers otherwise there.
    """
    import timm

    name = _timm_name(model)
    (height, width), preprocess = model.image_size, config.preprocess
    args = _timm_arguments(model, name, config.architecture.get("global_pool"))
    write_safetensors(model.state_dict(), folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architecture": name,
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            **({"label_names": list(config.labels)} if config.labels else {}),
            "model_args": {**args, "in_chans": model.in_chans},
            "pretrained_cfg": {
                "custom_load": False, "num_classes": model.num_classes,
                "input_size": [model.in_chans, height, width], "fixed_input_size": "img_size" in args,
                **_timm_preprocess(preprocess),
            },
        },
    )  # fmt: skip
    images = torch.randn(2, model.in_chans, height, width, generator=torch.Generator().manual_seed(0))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        _same(model.eval()(images), theirs(images), "timm")


def write_open_clip(model: Clip, config: ModelConfig, folder: Path) -> None:
    """What ``open_clip.create_model("local-dir:FOLDER")`` opens: ``open_clip_config.json`` and its weights.

    Raises:
        ValueError: for a CLIP that open_clip has not, naming why, or that answers otherwise there.
    """
    import open_clip
    import timm

    trunk, text = model.visual.trunk, model.text.config
    name, (height, width) = _timm_name(trunk), model.image_size
    with torch.device("meta"):
        known: Any = timm.create_model(name, num_classes=0)
    wants = tuple(known.pretrained_cfg.get("input_size", (3, height, width))[1:])
    if wants != (height, width) and getattr(getattr(known, "patch_embed", None), "img_size", None) is not None:
        raise ValueError(
            f"open_clip opens {name} at {wants[0]}x{wants[1]} pixels, and this one has {height}x{width}; publish it "
            "without --layout, or train at that size"
        )
    if model.tokenizer_source != "clip":
        raise ValueError("this CLIP has a tokenizer of its own; publish it without --layout")
    proj = getattr(model.visual.head, "proj", None)
    model_cfg: dict[str, Any] = {
        "embed_dim": model.embed_dim,
        "custom_text": True,
        "quick_gelu": model.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": height, "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "",
            "timm_proj": "none" if proj is None else "linear",
            "timm_proj_bias": proj is not None and proj.bias is not None,
        },
        "text_cfg": text_to_open_clip(text),
    }  # fmt: skip
    if model.logit_bias is not None:
        model_cfg["init_logit_bias"] = -10.0
    spec = config.preprocess
    write_safetensors(model.state_dict(), folder / "open_clip_model.safetensors")
    write_json(
        folder / "open_clip_config.json",
        {
            "model_cfg": model_cfg,
            "preprocess_cfg": {
                "mean": list(spec.mean), "std": list(spec.std), "interpolation": spec.interpolation,
                "resize_mode": spec.resize_mode,
            },
        },
    )  # fmt: skip
    images = torch.randn(2, model.in_chans, height, width, generator=torch.Generator().manual_seed(0))
    ids = model.tokenizer(["a photograph", "two words more"])
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.inference_mode():
        _same(model.eval().encode_image(images), theirs.encode_image(images), "open_clip")
        _same(model.encode_text(ids), theirs.encode_text(ids), "open_clip")


def _timm_name(model: nn.Module) -> str:
    import timm

    name = str(model.name).removeprefix("timm/")
    if not timm.is_model(name):
        raise ValueError(f"timm has no {name}; publish the run without --layout")
    return name


def _timm_arguments(model: Backbone, name: str, pool: str | None) -> dict[str, Any]:
    """What ``timm.create_model`` has to be told so that it builds this network.

    Raises:
        ValueError: where nothing makes it the same.
    """
    import timm

    height, width = model.image_size
    size: dict[str, Any] = {"img_size": height if height == width else [height, width]}
    pooled: dict[str, Any] = {} if pool is None else {"global_pool": pool}
    keys = model.state_dict().keys()
    # CNNs take no size; timm's ViTs move their norm behind another pooling unless they are told not to
    for args in ({**size, **pooled}, {**size, **pooled, "fc_norm": False}, pooled):
        try:
            with torch.device("meta"):
                made = timm.create_model(name, num_classes=model.num_classes, in_chans=model.in_chans, **args)
        except TypeError:
            continue
        if made.state_dict().keys() == keys:
            return args
    raise ValueError(f"timm's {name} has other parts than this one; publish the run without --layout")


def _timm_preprocess(spec: Preprocess) -> dict[str, Any]:
    modes = {ours: theirs for theirs, ours in RESIZE_MODES.items()}
    if spec.resize_mode not in modes or spec.value_scale != 255:
        raise ValueError(f"timm cannot say resize_mode={spec.resize_mode} with value_scale={spec.value_scale:g}")
    return {
        "mean": list(spec.mean), "std": list(spec.std), "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct, "crop_mode": modes[spec.resize_mode],
    }  # fmt: skip


def _same(ours: Tensor, theirs: Tensor, library: str) -> None:
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-6))
    if not difference <= TOLERANCE:
        raise ValueError(f"the folder answers otherwise in {library}: by {difference:.1e} of the largest answer")
