"""How a model wants its images: the one rule, and what published weights say of it.

The rule is :func:`decide_preprocess`. What weights say is read from the configuration that lies beside them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from visionzoo.plain import shown
from visionzoo.text import parse_json
from visionzoo.types import Preprocess

#: Bytes of a JSON file that describes a model. Names of 100,000 classes take 3 MB.
MOST_JSON = 2**26

#: Image statistics by name: mean and standard deviation.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
#: OpenAI stores sizes as tensors, and no one else does.
_OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
#: timm's crop modes under the names of :class:`Preprocess`.
RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}
#: PIL's numbers, as transformers stores them.
_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def decide_preprocess(
    default: Preprocess,
    *,
    said: Mapping[str, Any] = MappingProxyType({}),
    stored: Preprocess | None = None,
    source: str = "",
) -> Preprocess:
    """How a model wants its images: as the caller says, else as its weights say, else by default.

    Args:
        default: of the architecture, at the model's own size.
        said: fields of a :class:`Preprocess` that the caller stated.
        stored: what belongs to the weights; None where nothing says it, or there are none.
        source: what to call the weights.

    Returns:
        All of it, at the size of ``default``. Where caller and weights agree, in the digits of the weights.

    Raises:
        ValueError: for weights that contradict the caller, naming each field that differs.
    """
    if stored is None:
        return replace(default, **{**said, "image_size": default.image_size})
    found = stored.to_dict()
    asked = {**found, **{k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}}
    if differ := [k for k in said if not _same(asked[k], found[k])]:
        listed = "; ".join(f"{k} is {found[k]}, and {asked[k]} was asked for" for k in differ)
        raise ValueError(
            f"the preprocessing of the weights from {source} contradicts preprocess=: {listed}. Leave preprocess out "
            "to follow the weights; or set model.preprocess once they are loaded"
        )
    return replace(stored, image_size=default.image_size)


def are_openais(keys: Collection[str]) -> bool:
    """Whether weights are a CLIP of OpenAI's, by their keys as stored."""
    return any(k.removeprefix("model.") in _OPENAI_MARKS for k in keys)


def timm_preprocess(config: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocess:
    """timm's evaluation transform from its ``pretrained_cfg``; at the tag's own test size, with its test crop."""
    crop_pct = config["crop_pct"]
    test_size = config.get("test_input_size")
    if config.get("test_crop_pct") and test_size and image_size == tuple(test_size[1:]):
        crop_pct = config["test_crop_pct"]
    border = config["crop_mode"] == "border"
    return Preprocess(
        image_size=image_size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config.get("interpolation") or "bicubic",
        resize_mode=RESIZE_MODES[config["crop_mode"]],
        crop_pct=crop_pct,
        pad_value=tuple(round(255 * m) for m in config["mean"]) if border else 0,  # timm pads with the mean
    )


def stored_preprocess(
    source: str,
    weights_file: Path | None,
    current: Preprocess,
    metadata: Mapping[str, str] | None = None,
    keys: Collection[str] = (),
) -> Preprocess | None:
    """The preprocessing that belongs to weights, at the size of ``current``; None where nothing says it.

    OpenAI's are known by their ``keys``. Else it is read from timm's own record for ``timm:`` names, otherwise from
    what lies beside the weights: ``config.json`` (ours, or timm's on the hub), ``open_clip_config.json`` or
    ``preprocessor_config.json`` (transformers: statistics and filter only); last from the header ``metadata`` of a file
    of ours. A state dict has no ``weights_file``.
    """
    if are_openais(keys):
        mean, std = STATISTICS["openai"]
        return replace(current, mean=mean, std=std)
    if weights_file is None:
        return None
    if source.startswith("timm:"):
        from timm.models import get_pretrained_cfg

        record = get_pretrained_cfg(source.removeprefix("timm:"))
        return None if record is None else timm_preprocess(record.to_dict(), current.image_size)
    config = read_json(weights_file.with_name("config.json"))
    if isinstance(own := config.get("preprocess"), dict) and {"schema_version", "task"} & set(config):
        return replace(Preprocess.from_dict(own), image_size=current.image_size)
    # Hubs keep a timm image tower, or transformers' files, beside a CLIP of open_clip.
    if weights_file.name.startswith("open_clip") or not config:
        theirs = read_json(weights_file.with_name("open_clip_config.json")).get("preprocess_cfg")
        if isinstance(theirs, dict) and {"mean", "std"} <= set(theirs):
            return replace(
                current,
                mean=tuple(theirs["mean"]),
                std=tuple(theirs["std"]),
                value_scale=255.0,
                interpolation=theirs.get("interpolation", "bicubic"),
                resize_mode=theirs.get("resize_mode", "shortest"),
                crop_pct=1.0,
            )
    theirs = config.get("pretrained_cfg")
    if isinstance(theirs, dict) and {"mean", "std", "crop_pct", "crop_mode"} <= set(theirs):
        return timm_preprocess(theirs, current.image_size)
    config = read_json(weights_file.with_name("preprocessor_config.json"))
    if {"image_mean", "image_std"} <= set(config):
        factor = config.get("rescale_factor")
        return replace(
            current,
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
            value_scale=round(1 / factor, 6) if factor else current.value_scale,
            interpolation=_PIL_FILTERS.get(config.get("resample", -1), current.interpolation),
        )
    if metadata and "preprocess" in metadata and "schema_version" in metadata:
        record = parse_json(metadata["preprocess"], f"the preprocessing in {weights_file}")
        return replace(Preprocess.from_dict(record), image_size=current.image_size)
    return None


def stored_image_size(weights_file: Path, metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """(H, W) in pixels of the images that weights were made for, from what lies beside them (``config.json`` of ours,
    timm's or transformers', ``open_clip_config.json``) or their header; None where nothing says it."""
    config = read_json(weights_file.with_name("config.json"))
    if weights_file.name.startswith("open_clip") or not config:
        record = read_json(weights_file.with_name("open_clip_config.json"))
        size = _inner(_inner(record, "model_cfg"), "vision_cfg").get("image_size")
    elif {"schema_version", "task"} & set(config):
        size = _inner(config, "preprocess").get("image_size")
    else:
        size = config.get("image_size", _inner(config, "pretrained_cfg").get("input_size"))
        size = size[-2:] if isinstance(size, list) else size
    if size is None and "preprocess" in metadata and "schema_version" in metadata:
        size = parse_json(metadata["preprocess"], f"the preprocessing in {weights_file}").get("image_size")
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
        return None
    return sides[0], sides[1]


def _inner(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = record.get(key)
    return inner if isinstance(inner, dict) else {}


def _same(a: Any, b: Any) -> bool:
    """Whether two fields are the same, numbers within what a configuration rounds."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
    return bool(a == b)


@contextmanager
def description_of(weights: str | Path) -> Iterator[None]:
    """Turn what a description of a model with values of other kinds makes code raise into one ValueError."""
    try:
        yield
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"what describes the weights of {weights}, beside them or in their header, has a value that does not fit "
            f"({type(error).__name__}: {str(error)[:200]}); fetch it again, or remove it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that describes a model; empty where there is no file.

    Raises:
        ValueError: for a damaged file, one that holds something else, or one above :data:`MOST_JSON` bytes.
    """
    if not path.is_file():
        return {}
    if (size := path.stat().st_size) > MOST_JSON:
        raise ValueError(f"{path} has {size:,} bytes; a description of a model has at most {MOST_JSON:,}")
    try:
        config = parse_json(path.read_bytes(), str(path))
    except ValueError as error:
        raise ValueError(f"{error}; fetch it again, or remove it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {shown(config)}, and not an object that describes a model")
    return config
