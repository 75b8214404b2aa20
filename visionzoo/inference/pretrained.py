"""timm's pretrained classifiers as ours: their head, their preprocessing, the names of their classes."""

from __future__ import annotations

from visionzoo.backbones import backbone_info, list_backbones
from visionzoo.models.classifier import Classifier, create_classifier


def load_timm(source: str) -> tuple[Classifier, list[str]]:
    """A classifier with timm's weights, and its labels.

    A backbone that is native here is used where its recorded weights are these; otherwise timm's own code runs.

    Args:
        source: ``"timm:<name>.<tag>"``, or ``"timm:<name>"`` for timm's default tag.

    Raises:
        ValueError: for a name without published weights, or weights without a classifier.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset
    from timm.models import get_pretrained_cfg, is_model

    name = source.removeprefix("timm:")
    known = is_model(name.partition(".")[0])
    config = get_pretrained_cfg(name) if known else None
    if config is None or not config.has_weights:
        info = backbone_info(f"timm/{name}")  # for an unknown name or tag, this says which are near
        raise ValueError(f"timm has no weights for {info.name!r}; `visionzoo models 'timm/*'` lists its models")
    if not config.num_classes:
        raise ValueError(f"{source} has no classifier; use it as a backbone: create_backbone('timm/{name}')")
    full = f"{name.partition('.')[0]}.{config.tag}" if config.tag else name
    native = name.partition(".")[0]
    backbone = native if _is_native(native, f"timm:{full}") else f"timm/{full}"
    model = create_classifier(backbone, int(config.num_classes), weights=f"timm:{full}")
    subset = infer_imagenet_subset(config.to_dict())
    if subset is None:
        return model, [str(k) for k in range(model.num_classes)]
    descriptions = ImageNetInfo(subset).label_descriptions()
    assert isinstance(descriptions, list)
    return model, descriptions


def _is_native(name: str, weights: str) -> bool:
    return name in list_backbones(name) and backbone_info(name).weights == weights
