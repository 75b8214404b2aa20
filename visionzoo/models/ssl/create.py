"""Build a network that learns from views, by the name of its method."""

from __future__ import annotations

from typing import Any, Literal

from visionzoo.backbones import create_backbone
from visionzoo.models.ssl.dino import Dino
from visionzoo.models.ssl.moco import MoCo
from visionzoo.models.ssl.simclr import SimCLR
from visionzoo.models.ssl.views import ViewModel
from visionzoo.weights import LoadReport, install_load_hook, load_weights

SslMethod = Literal["simclr", "moco", "dino"]
#: What the papers use: SimCLR's appendix B.9, MoCo v3's reference for ViTs, DINO's for a ViT-S.
USUAL: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": None, "out": 128, "temperature": 0.5},
    "moco": {"hidden": 4096, "out": 256, "temperature": 0.2},
    "dino": {"hidden": 2048, "out": 65536, "temperature": 0.1},
}


def create_ssl(
    backbone: str,
    method: SslMethod = "dino",
    *,
    weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    hidden: int | None = None,
    out: int | None = None,
    temperature: float | None = None,
    queue: int = 0,
    patch_loss_weight: float = 0.0,
    patch_out: int | None = None,
    drop_path: float = 0.0,
    in_chans_policy: str | None = None,
) -> SimCLR | MoCo | Dino:
    """Build the network of one of three methods.

    Args:
        backbone: a name from ``visionzoo models``.
        method: simclr (arXiv 2002.05709), moco (v3, 2104.02057) or dino (2104.14294).
        weights: None for random weights; otherwise a source for :func:`start_from`, of the backbone alone.
        image_size: pixels, one number or (height, width); None for the size the backbone was made for.
        in_chans: channels of images.
        hidden: width of the heads' hidden layers; None for the paper's (simclr: that of the features).
        out: width of what is compared (simclr, moco), or number of prototypes (dino); None for the paper's.
        temperature: of the loss, the student's in dino; None for the paper's.
        queue: keys that moco remembers, as v1 and v2 do; 0 compares the images of a batch, as v3.
        patch_loss_weight: of iBOT's loss of hidden patches (2111.07832) beside dino's; 0 leaves it out, 1 is the
            paper's. The backbone needs the capability ``masked_image``.
        patch_out: prototypes of a head of the patches' own; None shares that of the images, as the paper does.
        drop_path: stochastic-depth rate of the encoder's last block.
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: for an unknown backbone or method, an option out of range, or unfitting weights.
    """
    if method not in USUAL:
        raise ValueError(f"method={method!r} is unknown; use simclr, moco or dino")
    if queue and method != "moco":
        raise ValueError(f"queue={queue} belongs to moco; {method} compares what is in a batch")
    check_patch_loss(method, patch_loss_weight, patch_out)
    usual = USUAL[method]
    heads: dict[str, Any] = {
        "hidden": usual["hidden"] if hidden is None else hidden,
        "out": usual["out"] if out is None else out,
        "temperature": usual["temperature"] if temperature is None else temperature,
    }
    for name in ("hidden", "out"):
        if heads[name] is not None and heads[name] < 1:
            raise ValueError(f"{name}={heads[name]} must be at least 1")
    encoder = create_backbone(backbone, image_size=image_size, in_chans=in_chans, drop_path=drop_path)
    model: SimCLR | MoCo | Dino
    if method == "simclr":
        model = SimCLR(encoder, **heads)
    elif method == "moco":
        model = MoCo(encoder, queue=queue, **heads)
    else:
        model = Dino(encoder, **heads, patch_loss_weight=patch_loss_weight, patch_out=patch_out)
    model.architecture = {
        "backbone": backbone,
        "method": method,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "in_chans": in_chans,
        **heads,
        "queue": queue,
        "patch_loss_weight": patch_loss_weight,
        "patch_out": patch_out,
        "drop_path": drop_path,
    }
    install_load_hook(model)
    if weights is not None:
        start_from(model, weights, in_chans_policy=in_chans_policy)
    return model


def check_patch_loss(method: str, weight: float, out: int | None) -> None:
    """Raises ValueError for options of iBOT's loss that do not fit."""
    if not 0 <= weight < float("inf"):
        raise ValueError(f"patch_loss_weight={weight} must be at least 0; the paper uses 1")
    if weight and method != "dino":
        raise ValueError(
            f"patch_loss_weight={weight} belongs to dino, and the method is {method}: leave one of the two out"
        )
    if out is not None and (out < 1 or not weight):
        why = "must be at least 1" if weight else "is the head of patches; give patch_loss_weight too"
        raise ValueError(f"patch_out={out} {why}")


def start_from(model: ViewModel, weights: Any, in_chans_policy: str | None = None) -> LoadReport:
    """Load the backbone alone, from anything that :func:`visionzoo.load_weights` reads; heads keep their values, and a
    teacher starts where the student does."""
    report = load_weights(model.encoder, weights, in_chans_policy=in_chans_policy)
    if model.teacher is not None:
        model.start_teacher()
    return report
