"""A classifier or backbone as a folder of transformers: weights, configuration and image processor.

``transformers.pipeline("image-classification", model=FOLDER)`` opens it. Both sides are compared before it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.swin import SwinConfig, SwinTransformer
from visionzoo.backbones.vit import VisionTransformer, ViTConfig
from visionzoo.data.transforms import RESAMPLING
from visionzoo.export.feeds import image_feeds, proof_images
from visionzoo.export.folder import new_folder
from visionzoo.export.parts import GraphPart, Port
from visionzoo.export.plans import trunk_of
from visionzoo.export.proof import Proof, prove
from visionzoo.files import write_json
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.models.preprocess import Normalize
from visionzoo.types import Preprocess
from visionzoo.weights import export_weights

#: Our activations by transformers' names.
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class _Compared(nn.Module):
    """(B, C, H, W) uint8 -> logits (B, K) or last features (B, N, D)."""

    def __init__(self, model: Any, preprocess: Preprocess, *, classifies: bool) -> None:
        super().__init__()
        self.normalize, self.model, self.classifies = Normalize(preprocess), model, classifies

    def forward(self, images: Tensor) -> Tensor:
        x = self.model.forward_features(self.normalize(images))
        if self.classifies:
            return self.model.forward_head(x)
        return x if x.ndim == 3 else x.flatten(1, 2)


def export_transformers(model: Any, out: str | Path, *, images: str | None = None) -> tuple[Proof, str]:
    """Write the folder.

    Args:
        model: an :class:`ImageClassifier` or a backbone, native: a plain ViT, DINOv2, Swin or Swin v2.
        out: the folder, which must not exist.
        images: pictures to compare on; None for built-in ones.

    Returns:
        what came of the comparison, and what the pictures were.

    Raises:
        NotTheSame: where transformers' network gives other answers; nothing is left at ``out``.
        FileExistsError: for a folder that exists.
        ValueError: for a network that transformers has not, naming why, or without transformers.
    """
    if find_spec("transformers") is None:
        raise ValueError("a folder of transformers needs transformers: pip install 'visionzoo[transformers]'")
    import transformers

    backbone, classifies = trunk_of(model), isinstance(model, ImageClassifier)
    preprocess = model.preprocess
    config, name = _config(backbone, classifies=classifies)
    if classifies:
        if model.multi_label:
            config["problem_type"] = "multi_label_classification"
        config["id2label"] = dict(enumerate(model.labels))
        config["label2id"] = {label: k for k, label in enumerate(model.labels)}
    pictures, said = proof_images(images)
    with new_folder(out) as folder:
        architecture = f"{name}ForImageClassification" if classifies else f"{name}Model"
        made = getattr(transformers, f"{name}Config")(architectures=[architecture], **config)
        made.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", processor_config(preprocess))
        export_weights(backbone, folder / "model.safetensors", layout="transformers")
        with _quiet_transformers():
            theirs, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
        keys = [*info["missing_keys"], *info["unexpected_keys"]]
        # what neither side computes with
        if lost := [key for key in keys if "pooler" not in key and "mask_token" not in key]:
            raise ValueError(f"transformers' {architecture} does not take these weights: {', '.join(lost[:5])}")
        theirs.eval()
        normalize = Normalize(preprocess)

        def run(pixels: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                found = theirs(pixel_values=normalize(torch.from_numpy(pixels)))
            return [(found.logits if classifies else found.last_hidden_state).numpy()]

        output = Port("logits" if classifies else "last_hidden_state", "float32", ("batch",), "")
        part = GraphPart(
            name="transformers",
            module=_Compared(backbone.float().eval(), preprocess, classifies=classifies).eval(),
            inputs=(),
            outputs=(output,),
            feeds=image_feeds(preprocess, [preprocess.image_size]),
            ranked=("logits",),
        )
        proof = prove(part, run, pictures[: 2 * 8])
        proof.require("fp32")
    return proof, said


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its bars and reports; what matters of them is looked at."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _config(backbone: Backbone, *, classifies: bool) -> tuple[dict[str, Any], str]:
    """Keyword arguments of a configuration of transformers, and the stem of its classes' names."""
    (height, width), found = backbone.image_size, None
    reason = "transformers has no such network"
    if height != width:
        reason = f"its pictures are {height}x{width}, and transformers' are square"
    elif isinstance(backbone, SwinTransformer):
        found = _swin(backbone.config)
    elif isinstance(backbone, VisionTransformer):
        if backbone.name.endswith("dinov2") and classifies:
            reason = "transformers' DINOv2 classifies by other features"
        else:
            found = _vit(backbone.config, dino=backbone.name.endswith("dinov2"))
    if found is None:
        raise ValueError(
            f"{backbone.name} cannot be written for transformers: {reason}; plain ViTs, Swin, Swin v2 and the features "
            "of DINOv2 can"
        )
    return {"num_channels": backbone.in_chans, "image_size": height, **found[0]}, found[1]


def _swin(c: SwinConfig) -> tuple[dict[str, Any], str]:
    swin: dict[str, Any] = {
        "patch_size": c.patch_size, "embed_dim": c.embed_dim, "depths": list(c.depths),
        "num_heads": list(c.num_heads), "window_size": c.window, "mlp_ratio": c.mlp_ratio,
    }  # fmt: skip
    if c.version == 2:
        swin["pretrained_window_sizes"] = list(c.pretrained_windows) or [0] * len(c.depths)
    return swin, "Swin" if c.version == 1 else "Swinv2"


def _vit(c: ViTConfig, *, dino: bool) -> tuple[dict[str, Any], str] | None:
    """None for a ViT that transformers has not."""
    vit: dict[str, Any] = {
        "patch_size": c.patch_size, "hidden_size": c.embed_dim, "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads, "layer_norm_eps": c.eps, "qkv_bias": c.qkv_bias,
        "hidden_act": _ACTIVATIONS.get(c.act, c.act),
    }  # fmt: skip
    if dino:
        vit |= {"mlp_ratio": c.mlp_hidden // c.embed_dim, "use_swiglu_ffn": c.mlp != "mlp"}
        if c.registers:
            return {**vit, "num_register_tokens": c.registers}, "Dinov2WithRegisters"
        return vit, "Dinov2"
    odd = c.distill_token or c.registers or c.pre_norm or c.qk_norm or c.layer_scale
    if odd or c.pool != "token" or c.mlp != "mlp" or c.position not in ("learned", "sincos"):
        return None
    return {**vit, "intermediate_size": c.mlp_hidden}, "ViT"


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """``preprocessor_config.json`` of transformers.

    Raises:
        ValueError: for a resize rule that its processors have not.
    """
    height, width = preprocess.image_size
    resample = int(RESAMPLING[preprocess.interpolation])
    common = {
        "do_resize": True, "resample": resample, "do_rescale": True, "rescale_factor": 1 / preprocess.value_scale,
        "do_normalize": True, "image_mean": list(preprocess.mean), "image_std": list(preprocess.std),
    }  # fmt: skip
    if preprocess.resize_mode == "squash" and preprocess.crop_pct == 1:
        return {**common, "image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    if preprocess.resize_mode != "shortest" or height != width or preprocess.crop_pct > 1:
        raise ValueError(
            f"transformers has no image processor for resize_mode={preprocess.resize_mode!r} at {height}x{width}"
        )
    return {
        **common,
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "size": {"shortest_edge": int(height / preprocess.crop_pct)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }
