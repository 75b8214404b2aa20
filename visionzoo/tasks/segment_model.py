"""The network of a segmentation task: what it starts from, and what of it is trained."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from visionzoo.models.sam import Sam, create_sam
from visionzoo.models.sam.build import SAM_BACKBONES
from visionzoo.models.sam.encoder import NeckedEncoder
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.lora import add_adapters
from visionzoo.weights import load_weights

EncoderMode = Literal["frozen", "lora", "full"]


def build_segmenter(
    backbone: str | None,
    weights: str | None,
    backbone_weights: str | None,
    options: dict[str, Any],
    text_dim: int | None = None,
) -> tuple[Sam, str]:
    """The model, with weights, and a line that says how much of it was loaded.

    Args:
        backbone: as the task takes it.
        weights: as the task takes it.
        backbone_weights: as the task takes it.
        options: other keyword arguments of ``create_sam``; None is what nobody gave.
        text_dim: width of text prompts; a model that took none before learns them. None keeps what there is.

    Raises:
        ValueError: when nothing says which backbone to build, or what is given does not fit together.
    """
    config = run_config(weights)
    if weights is not None and backbone_weights is not None:
        raise ValueError("weights and backbone_weights are both given; weights of a whole model hold its backbone")
    if config is not None and config.task != "segment":  # a run whose backbone becomes the image encoder
        weights, backbone_weights, config = None, weights, None
    given = {k: v for k, v in options.items() if v is not None}
    if weights is not None:
        known = {} if config is None else config.architecture
        if backbone is not None and known.get("backbone", backbone) != backbone:
            raise ValueError(
                f"{weights} holds a SAM of {known['backbone']}, not of {backbone}; leave --model.backbone out"
            )
        factor = given.pop("position_scale", 1.0)
        model = create_sam(**{"backbone": backbone or "vit_b", **known, **given})
        line = str(load_weights(model, weights))
        model.prompt_encoder.pe_layer.sharpen(factor)
        _add_text(model, text_dim, weights)
        return model, line
    if backbone_weights is not None and backbone not in SAM_BACKBONES:
        found = trunk_options(backbone_weights, {"backbone": backbone, "image_size": options["image_size"]})
        backbone = found["backbone"]
        given |= {"image_size": found["image_size"]} if found["image_size"] is not None else {}
    if backbone is None:
        raise ValueError("model.backbone is not given: vit_b, vit_l, vit_h, or a name from `visionzoo models`")
    model = create_sam(backbone, text_dim=text_dim, **given)
    if backbone_weights is None:
        return model, ""
    trunk = model.backbone
    line = describe_handover(load_weights(trunk, backbone_weights), trunk)
    return model, line


def _add_text(model: Sam, text_dim: int | None, source: str) -> None:
    have = model.prompt_encoder.text_dim
    if text_dim is None or have == text_dim:
        return
    if have is not None:
        raise ValueError(f"{source} takes text of width {have}, and the text model gives {text_dim}; use the same one")
    model.add_text_prompts(text_dim)


def choose_trained(model: Sam, encoder: EncoderMode, *, text: bool, rank: int, alpha: float) -> None:
    """Freeze what is not trained, in place; with ``lora`` put adapters into the encoder.

    A neck that was built around a backbone always trains; that of Meta's encoders belongs to the encoder. Whatever is
    left trainable gets a gradient in every step, as distributed training wants it.

    Args:
        model: the network.
        encoder: what happens to the image encoder.
        text: whether text prompts are trained.
        rank: of the adapters.
        alpha: of the adapters.

    Raises:
        ValueError: as :func:`add_adapters`.
    """
    if not text and model.prompt_encoder.text_dim is not None:
        model.prompt_encoder.text_projection.requires_grad_(False)
    if encoder == "full":
        return
    learning: tuple[str, ...] = ("prompt_encoder.", "mask_decoder.")
    if isinstance(model.image_encoder, NeckedEncoder):
        learning += ("image_encoder.neck.",)
    # what the backbone has for pooling was frozen before, since nothing here uses it: an adapter there would not learn
    unused = [f"{n}." for n, m in model.named_modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    for name, parameter in model.named_parameters():
        if not name.startswith(learning):
            parameter.requires_grad_(False)
    if encoder == "lora":
        add_adapters(model, rank=rank, alpha=alpha, keep=(*learning, *unused))
