"""From a model to what is exported of it.

Legend: B batch, C channels, (H, W) pixels, K classes, D width, P prefix tokens, E embedding, L context length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from visionzoo.backbones import backbone_info, create_backbone, require_capability
from visionzoo.backbones.base import Backbone
from visionzoo.export.feeds import image_feeds, open_image_sizes
from visionzoo.export.folder import is_exported
from visionzoo.export.graphs import (
    ClassifierGraph,
    FeaturesGraph,
    ImageEmbeddingGraph,
    PyramidGraph,
    TextEmbeddingGraph,
    ZeroShotGraph,
)
from visionzoo.export.parts import Feed, GraphPart, Plan, Port
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.masks import load_sam
from visionzoo.inference.named import weights_of
from visionzoo.inference.zero_shot import ZeroShotClassifier
from visionzoo.models.bundle import load_bundle, read_config
from visionzoo.models.clip import Clip
from visionzoo.models.clip.config import CLIP_MODELS
from visionzoo.models.encoder_model import EncoderModel
from visionzoo.models.sam import Sam
from visionzoo.models.sam.build import SAM_BACKBONES
from visionzoo.runs.folder import RunFolder
from visionzoo.types import Preprocess
from visionzoo.weights.local import local_source

#: What can be asked for of each model; the first is what it gets otherwise.
WANTED = {
    "classifier": ("classifier", "features", "pyramid"),
    "clip": ("clip", "features", "pyramid", "zero-shot"),
    "sam": ("sam", "features", "pyramid"),
    "backbone": ("features", "pyramid"),
}
_TEXTS = ("a photo of a cat.", "a dog on the grass", "", "two people at a table with a lamp above it")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be exported of a model."""

    part: str | None = None  #: a kind of :data:`WANTED`; None for the model's first
    labels: Sequence[str] | None = None  #: of a zero-shot classifier
    templates: Any = None
    fixed_size: bool = False  #: one image size, also for backbones that take any


def load_model(source: str, *, weights: str | None = None, image_size: int | tuple[int, int] | None = None) -> Any:
    """The model that a person names, on the CPU.

    Args:
        source: a run folder, ``embedded:NAME``, ``timm:NAME``, ``hf-hub:org/name``, or the name of a CLIP, a SAM or a
            backbone.
        weights: of a name: file, folder, hub name, timm's tag, or ``random``.
        image_size: of a backbone or SAM that is given by its name.

    Returns:
        an :class:`ImageClassifier`, a Clip, a Sam or a Backbone.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for an unknown name, a name without weights, a size that the model cannot take, or a folder of
            another kind.
    """
    source = local_source(source)
    if is_exported(source):
        raise ValueError(f"{source} is exported already; give the run or the model that it was made of")
    named = not os.path.isdir(source) and not source.startswith(("timm:", "hf-hub:"))
    if not named and (weights is not None or image_size is not None):
        raise ValueError(f"{source} has weights and an image size of its own; leave the options out")
    if source.startswith("timm:"):
        return ImageClassifier.load(source, "cpu")
    if source in SAM_BACKBONES:
        return load_sam(source, weights=weights, image_size=image_size, device="cpu")
    if source.replace("/", "-").lower() in {name.lower() for name in CLIP_MODELS}:
        return load_clip(source, "cpu", weights=weights)[0]
    if named:
        if os.path.sep in source and not source.startswith("timm/"):
            RunFolder.open(source)  # says that there is none, and which are near
        given = weights_of(source, weights)
        return create_backbone(source, weights=given, image_size=image_size).eval()
    if source.startswith("hf-hub:") or not RunFolder(source).model_config.is_file():
        return load_clip(source, "cpu")[0]
    if (Path(source) / "model.safetensors").is_file() and "schema_version" in _json(source):
        task = read_config(source).task
        if task == "classify":
            return ImageClassifier.load(source, "cpu")
        model = load_bundle(source, device="cpu")[0]
        return model.encoder if isinstance(model, EncoderModel) else model
    return load_clip(source, "cpu")[0]


def _json(folder: str) -> dict[str, Any]:
    from visionzoo.weights.preprocessing import read_json

    return read_json(RunFolder(folder).model_config)


def make_plan(model: Any, wish: Wish, name: str) -> Plan:
    """What is exported of a model.

    Args:
        model: as :func:`load_model` gives them.
        wish: what of it.
        name: what it is called.

    Raises:
        ValueError: for something that this model has not, naming what it has.
    """
    kind = _kind_of(model)
    part = wish.part or ("zero-shot" if wish.labels else WANTED[kind][0])
    if part not in WANTED[kind]:
        raise ValueError(f"{name} is a {kind}, of which {', '.join(WANTED[kind])} can be exported, not {part!r}")
    if wish.labels and part != "zero-shot":
        raise ValueError(f"labels are for a zero-shot classifier, not for {part!r}")
    if part == "classifier":
        return _classifier(model, name)
    if part == "clip":
        return _towers(model, name)
    if part == "zero-shot":
        if not wish.labels:
            raise ValueError('a zero-shot classifier needs labels: --labels "cat,dog", or a file with one on each line')
        return zero_shot_plan(ZeroShotClassifier(model, wish.labels, wish.templates, name=name))
    if part == "sam":
        from visionzoo.export.sam_parts import sam_plan

        return sam_plan(model, name)
    return _backbone(trunk_of(model), part, name, fixed_size=wish.fixed_size)


def trunk_of(model: Any) -> Backbone:
    """The backbone in any of our models."""
    if isinstance(model, ImageClassifier):
        model = model.model
    if isinstance(model, Clip):
        model = model.visual.trunk
    if isinstance(model, Sam):
        model = model.backbone
    assert isinstance(model, Backbone)
    return model


def _kind_of(model: Any) -> str:
    if isinstance(model, ImageClassifier):
        return "classifier"
    if isinstance(model, Clip):
        return "clip"
    if isinstance(model, Sam):
        return "sam"
    if isinstance(model, Backbone):
        return "backbone"
    raise ValueError(f"a {type(model).__name__} cannot be exported; its backbone can")


def licence_of(backbone: str) -> dict[str, str]:
    """What the registry knows of the published weights of a backbone."""
    try:
        info = backbone_info(backbone)
    except ValueError:  # of a program that is not there any more
        return {}
    return {"licence": info.licence, "paper": info.paper}


def _images(preprocess: Preprocess, *, open_size: bool = False) -> Port:
    height, width = ("height", "width") if open_size else preprocess.image_size
    channels = len(preprocess.mean)
    order = "RGB" if channels == 3 else "grey"
    return Port("images", "uint8", ("batch", channels, height, width), f"pixels, {order}, channels first, in 0..255")


def _classifier(classifier: ImageClassifier, name: str) -> Plan:
    model: Any = classifier.model.float()
    calibration, multi = classifier.calibration, classifier.multi_label
    temperature = 1.0 if calibration is None else calibration.temperature
    k = len(classifier.labels)
    each = "sigmoid of each class" if multi else "softmax over the classes, which sum to 1"
    part = GraphPart(
        name="model",
        module=ClassifierGraph(model, classifier.preprocess, multi_label=multi, temperature=temperature).eval(),
        inputs=(_images(classifier.preprocess),),
        outputs=(
            Port("probabilities", "float32", ("batch", k), f"in 0..1, {each}, in the order of the labels"),
            Port("logits", "float32", ("batch", k), "before that, not divided by the temperature"),
            Port("features", "float32", ("batch", int(model.pooled_dim)), "what the classifier reads of an image"),
        ),
        feeds=image_feeds(classifier.preprocess, [classifier.preprocess.image_size]),
        ranked=("probabilities", "logits"),
    )
    facts = {
        "labels": list(classifier.labels),
        "multi_label": multi,
        "temperature": temperature,
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
    }
    return Plan(
        kind="classifier", name=name, backbone=model.name, parts=(part,), preprocess=classifier.preprocess, facts=facts
    )


def _backbone(backbone: Backbone, part: str, name: str, *, fixed_size: bool) -> Plan:
    backbone, preprocess = backbone.float().eval(), backbone.preprocess
    opened = "any_size" in backbone.capabilities and backbone.open_in_graphs and not fixed_size
    size = preprocess.image_size
    sizes = open_image_sizes(size, backbone.stride) if opened else [size]
    cells = ("rows", "columns") if opened else tuple(-(-n // backbone.stride) for n in size)
    module: nn.Module
    if part == "pyramid":
        require_capability(backbone, "pyramid", "exporting a pyramid")
        module = PyramidGraph(backbone, preprocess)
        outputs = tuple(
            Port(
                f"level{i}", "float32",
                ("batch", level.channels, *(f"{n}{i}" if opened else -(-s // level.stride) for n, s in
                                            zip(("rows", "columns"), size, strict=True))),
                f"feature map of stride {level.stride}",
            )
            for i, level in enumerate(backbone.pyramid_levels)
        )  # fmt: skip
    else:
        module = FeaturesGraph(backbone, preprocess)
        outputs = (
            Port("pooled", "float32", ("batch", backbone.pooled_dim), "what a linear classifier reads"),
            Port("grid", "float32", ("batch", backbone.grid_dim, *cells), f"feature map of stride {backbone.stride}"),
        )
        if p := backbone.num_prefix_tokens:
            outputs += (Port("prefix", "float32", ("batch", p, backbone.grid_dim), "class and register tokens"),)
    graph = GraphPart(
        name="model",
        module=module.eval(),
        inputs=(_images(preprocess, open_size=opened),),
        outputs=outputs,
        feeds=image_feeds(preprocess, sizes),
    )
    return Plan(
        kind=part, name=name, backbone=backbone.name, parts=(graph,), preprocess=preprocess,
        facts={"any_size": opened, "stride": backbone.stride},
        notes=() if opened or fixed_size else (_why_one_size(backbone),),
    )  # fmt: skip


def _why_one_size(backbone: Backbone) -> str:
    height, width = backbone.preprocess.image_size
    if "any_size" in backbone.capabilities:
        reason = "timm's code decides by the size that a graph is made with; --image-size makes it for another"
    else:
        reason = "the network takes no other; --image-size builds it for another"
    return f"images of {height}x{width} alone: {reason}"


def _towers(clip: Clip, name: str) -> Plan:
    clip = clip.float().eval()
    e, length = clip.embed_dim, clip.context_length
    image = GraphPart(
        name="image",
        module=ImageEmbeddingGraph(clip).eval(),
        inputs=(_images(clip.preprocess),),
        outputs=(Port("embeddings", "float32", ("batch", e), "of length one"),),
        feeds=image_feeds(clip.preprocess, [clip.preprocess.image_size]),
    )
    text = GraphPart(
        name="text",
        module=TextEmbeddingGraph(clip).eval(),
        inputs=(Port("tokens", "int64", ("batch", length), "token ids, padded, as the model's tokenizer gives them"),),
        outputs=(Port("embeddings", "float32", ("batch", e), "of length one"),),
        feeds=_text_feeds(clip),
    )
    facts: dict[str, Any] = {"logit_scale": float(clip.logit_scale.detach().exp()), "context_length": length}
    if clip.logit_bias is not None:
        facts["logit_bias"] = float(clip.logit_bias.detach())
    facts["tokenizer"] = clip.tokenizer_source
    facts["vocab_size"], facts["cleans_texts"] = clip.vocab_size, not clip.config.causal
    return Plan(
        kind="clip", name=name, backbone=clip.visual.trunk.name, parts=(image, text), preprocess=clip.preprocess,
        facts=facts,
    )  # fmt: skip


def _text_feeds(clip: Clip) -> Any:
    def feeds(images: Sequence[Image.Image]) -> Iterator[Feed]:
        del images
        tokens: Tensor = clip.tokenizer(list(_TEXTS))
        for batch in (3, 1, 4):
            yield Feed("texts", batch, (tokens[-batch:],))

    return feeds


def zero_shot_plan(classifier: ZeroShotClassifier) -> Plan:
    """A zero-shot classifier with its labels in the graph."""
    clip, multi = classifier.model.float().eval(), classifier.multi_label
    calibration = classifier.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    weights, scale, bias = classifier.linear()
    k, e = len(classifier.labels), clip.embed_dim
    each = "each label by itself" if multi else "softmax over the labels, which sum to 1"
    part = GraphPart(
        name="model",
        module=ZeroShotGraph(clip, weights, scale, bias, multi_label=multi, temperature=temperature).eval(),
        inputs=(_images(clip.preprocess),),
        outputs=(
            Port("probabilities", "float32", ("batch", k), f"in 0..1, {each}, in the order of the labels"),
            Port("logits", "float32", ("batch", k), "before that, not divided by the temperature"),
            Port("embeddings", "float32", ("batch", e), "of the image, of length one"),
        ),
        feeds=image_feeds(clip.preprocess, [clip.preprocess.image_size]),
        ranked=("probabilities", "logits"),
    )
    facts = {
        "labels": list(classifier.labels),
        "multi_label": multi,
        "temperature": temperature,
        "templates": classifier.templates_name,
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
        **({} if classifier.unknown is None else {"unknown": classifier.unknown}),
        "unknown_label": classifier.unknown_label,
    }
    return Plan(
        kind="zero-shot", name=classifier.name, backbone=clip.visual.trunk.name, parts=(part,),
        preprocess=clip.preprocess, facts=facts,
    )  # fmt: skip
