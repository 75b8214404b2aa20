"""Which network is asked: a pretrained one by default, any that a person names, or a small one from nothing.

Legend: N images, D width of the features, K classes, E embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.auto.recipes import scratch_network
from visionzoo.backbones import backbone_info
from visionzoo.backbones.base import Backbone
from visionzoo.data.sources.readable_names import readable_names
from visionzoo.inference.linear import Linear
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.named import DEFAULT_BACKBONE, usual_size
from visionzoo.inference.zero_shot import ZeroShotClassifier
from visionzoo.models.classifier import Classifier, create_classifier
from visionzoo.models.clip import Clip
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.weights import load_weights

#: What ``--weights`` is called where a network starts from nothing.
NOTHING = "none"
#: What loading says of a head that is there to be filled.
_FRESH_HEAD = "the head of .* was not loaded"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A classifier whose head is to be filled, and what is known of where it comes from."""

    model: Classifier
    pretrained: bool
    origin: str  #: one line for people: name, size, weights, licence, pixels
    weights: str | None = None  #: the source of them; None for random ones
    clip: Clip | None = None  #: where the weights are a CLIP's
    said: str = ""  #: what went otherwise than was to be expected

    @property
    def any_size(self) -> bool:
        """Whether the size of the images can still be chosen."""
        return "any_size" in backbone_info(self.model.architecture["backbone"]).capabilities


def open_network(
    backbone: str | None, weights: str | None, image_size: int | None, classes: int, pixels: int, *, seed: int
) -> Network:
    """The network that a person asked for.

    Args:
        backbone: a registered name; None for that of the weights, or the default.
        weights: as ``--model.weights``; None for the published ones of the backbone; ``none`` for random ones.
        image_size: pixels; None for what suits.
        classes: K.
        pixels: median of the images' shorter edge, for a network from nothing.
        seed: of random weights.

    Raises:
        FileNotFoundError, ValueError: for weights that are not there or do not fit.
    """
    if weights == NOTHING:
        return _from_nothing(backbone, image_size, classes, pixels, seed)
    if weights is not None:
        return _from_weights(backbone, weights, image_size, classes)
    name = backbone or DEFAULT_BACKBONE
    published = backbone_info(name).weights
    if published is None:
        raise ValueError(
            f"{name} has no published weights; give --weights W, or --weights {NOTHING} to train from nothing"
        )
    try:
        return _from_weights(name, published, image_size, classes)
    except FileNotFoundError as error:
        if backbone is not None:
            raise
        found = _from_nothing(None, image_size, classes, pixels, seed)
        said = f"{error}. Until then a small network learns from nothing, which reaches far less on photographs"
        return Network(model=found.model, pretrained=False, origin=found.origin, said=said)


def network_of(model: Backbone | Clip, classes: int) -> Network:
    """A network around one that is in memory, whose weights are copied."""
    trunk, clip = (model.visual.trunk, model) if isinstance(model, Clip) else (model, None)
    size = (int(trunk.image_size[0]), int(trunk.image_size[1]))
    made = create_classifier(_name_of(trunk), classes, image_size=size, in_chans=trunk.in_chans)
    _copy_trunk(trunk, made)
    return Network(model=made.eval(), pretrained=True, origin=_described(made), clip=clip)


def _name_of(trunk: Backbone) -> str:
    """What it is registered as; with a CLIP's other activation it is another function, which timm has a name for."""
    quick = getattr(getattr(trunk, "config", None), "act", "") == "quick_gelu"
    return trunk.name.replace("_clip_", "_clip_quickgelu_") if quick and "_quickgelu_" not in trunk.name else trunk.name


def _copy_trunk(trunk: Backbone, model: Classifier) -> None:
    """The weights of a backbone into a classifier on the same one; its preprocessing too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_FRESH_HEAD)
        load_weights(model, {k: v for k, v in trunk.state_dict().items() if k not in model.head_keys()})
    model.preprocess = trunk.preprocess


def _from_nothing(backbone: str | None, image_size: int | None, classes: int, pixels: int, seed: int) -> Network:
    name, size = scratch_network(pixels)
    if backbone is not None:
        name, size = backbone, backbone_info(backbone).image_size[0]
    size = image_size or size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_classifier(name, classes, image_size=size, global_pool=_average(name))
    return Network(model=model.eval(), pretrained=False, origin=f"{_described(model)}, random weights")


def _from_weights(backbone: str | None, weights: str, image_size: int | None, classes: int) -> Network:
    clip, config = None, run_config(weights)
    given: dict[str, Any] = {"backbone": backbone, "image_size": image_size, "global_pool": None}
    if config is not None and config.task == "clip":
        clip = load_clip(weights, "cpu")[0]
    elif config is not None and config.task in ("mae", "simmim"):
        given["global_pool"] = _average(trunk_options(weights, given)["backbone"])  # no pooling was trained
    elif config is None and backbone is None:  # weights that say themselves what they are: of CLIPs alone
        try:
            clip = load_clip(weights, "cpu")[0]
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(
                f"{weights}: name its backbone by --backbone. (It was taken for a CLIP: {error})"
            ) from None
        given["backbone"] = _name_of(clip.visual.trunk)
        given["image_size"] = image_size or clip.image_size
    if config is None and image_size is None and clip is None:
        given["image_size"] = usual_size(str(backbone))
    architecture = trunk_options(weights, given)
    model = create_classifier(num_classes=classes, in_chans=3, **architecture)
    if clip is not None and config is None:
        _copy_trunk(clip.visual.trunk, model)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_FRESH_HEAD)
            report = load_weights(model, weights)
        describe_handover(report, model)
    known = backbone_info(architecture["backbone"])
    of = f", licence {known.licence}" if weights == known.weights else ""
    origin = f"{_described(model)}, weights {weights}{of}"
    return Network(model=model.eval(), pretrained=True, origin=origin, weights=weights, clip=clip)


def _described(model: Classifier) -> str:
    parameters = sum(p.numel() for p in model.trunk_parameters()) / 1e6
    height, width = model.preprocess.image_size
    size = f"{parameters:.3g} M parameters, {4 * parameters:.3g} MB"
    return f"{model.name} ({size}) at {height} x {width} pixels"


def _average(backbone: str) -> str | None:
    """Mean pooling, where the backbone has a choice."""
    try:
        with torch.device("meta"):
            create_classifier(backbone, 1, global_pool="avg")
    except ValueError:
        return None
    return "avg"


def fill_head(model: Classifier, head: Linear) -> None:
    """Make a linear head that of the network, in place.

    Raises:
        ValueError: for a network whose head is no linear layer.
    """
    own: Any = model.get_classifier()
    for layer in own if isinstance(own, tuple) else (own,):  # DeiT's two heads are averaged
        if not isinstance(layer, nn.Linear) or layer.weight.shape != head.weight.shape:
            raise ValueError(
                f"{model.name} has a head that is no linear layer ({type(layer).__name__}); use another backbone"
            )
        with torch.no_grad():
            layer.weight.copy_(head.weight)
            layer.bias.copy_(head.bias)


def text_prior(clip: Clip, names: Sequence[str], features: Tensor) -> Linear:
    """The head that a CLIP's text tower makes of the names of classes, for features before the projection.

    Zero-shot logits are scale * cos(projection(x), text). Dividing by the mean length of the projections in place of
    each one's own makes them linear in x (as arXiv 2109.01903, section 3, begins from the zero-shot head).

    Args:
        clip: its image tower gave the features.
        names: K classes.
        features: (N, D), of training images.
    """
    zero_shot = ZeroShotClassifier(clip, labels=_distinct(readable_names(names)), templates="imagenet")
    texts = zero_shot.text_embeddings.float().cpu()
    with torch.no_grad():
        scale = clip.logit_scale.exp().float().cpu()
        head = clip.visual.head
        projected = head(features.to(clip.logit_scale.device)).float().cpu()
        length = projected.norm(dim=1).mean().clamp_min(1e-12)
        layer = head[0] if len(head) else None
        if not isinstance(layer, nn.Linear):
            return Linear(scale * texts / length, torch.zeros(len(texts)))
        bias = torch.zeros(len(texts)) if layer.bias is None else texts @ layer.bias.float().cpu()
        return Linear(scale * (texts @ layer.weight.float().cpu()) / length, scale * bias / length)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which no two are the same but for case; a number is put behind those that are."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen[name.casefold()] = seen.get(name.casefold(), 0) + 1
        found.append(name if count == 1 else f"{name} {count}")
    return found
