"""Start a task from the run of another one: which backbone it holds, and whether all of it arrived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from visionzoo.models.bundle import CONFIG_FILE, ModelConfig, read_config
from visionzoo.models.trunk import trunk_name
from visionzoo.weights import LoadReport
from visionzoo.weights.local import local_source
from visionzoo.weights.preprocessing import read_json

#: Below this share of a backbone's tensors a hand-over is refused: the rest would train from random values, unnoticed.
LEAST_SHARE = 0.95


def run_config(weights: str | None) -> ModelConfig | None:
    """The configuration beside ``weights``, if it is a run folder or another folder of ours; transformers and timm keep
    a file of the same name."""
    weights = local_source(weights)
    if weights is None or "schema_version" not in read_json(Path(weights) / CONFIG_FILE):
        return None
    return read_config(weights)


def trunk_options(weights: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what was not given (None) of a backbone's options from the run folder in ``weights``, if it is one.

    A run folder knows its backbone, input size and pooling; weights trained with one pooling mean nothing under
    another.

    Args:
        weights: what the user gave as ``--model.weights``.
        given: ``backbone`` and any of ``image_size`` and ``global_pool``, None where the user gave nothing.

    Raises:
        ValueError: for a run folder of another backbone, or when nothing says which backbone to build.
    """
    found = dict(given)
    config = run_config(weights)
    if config is not None:
        name, known = trunk_name(config), config.architecture
        if found["backbone"] is None:
            found["backbone"] = name
        elif found["backbone"].removeprefix("timm/") != name.removeprefix("timm/"):
            raise ValueError(
                f"{weights} holds a run of the backbone {name}, not of {found['backbone']}; "
                f"leave --model.backbone out, or give weights of {found['backbone']}"
            )
        for option in set(found) & {"image_size", "global_pool"}:
            if found[option] is None:
                size = known.get(option)
                found[option] = tuple(size) if isinstance(size, list) else size
    if found["backbone"] is None:
        raise ValueError("model.backbone is not given; `visionzoo models` lists names, such as vit_small_patch16_224")
    return found


def describe_handover(report: LoadReport, model: nn.Module) -> str:
    """One line on how much of the backbone of ``model`` came from the weights; its head does not count.

    Raises:
        ValueError: when that is less than :data:`LEAST_SHARE` of its tensors.
    """
    heads: tuple[str, ...] = tuple(model.head_prefixes)  # type: ignore[arg-type]
    trunk = {k for k in model.state_dict() if not k.startswith(heads)}
    loaded = len(trunk - set(report.reset))
    share = loaded / len(trunk)
    if share < LEAST_SHARE:
        raise ValueError(
            f"only {loaded} of {len(trunk)} tensors ({share:.1%}) of {report.model} came from {report.source}; "
            f"at least {LEAST_SHARE:.0%} must. Left random: {', '.join(report.reset[:8])}"
        )
    text = f"{loaded} of {len(trunk)} tensors of the backbone ({share:.1%}) loaded from {report.source}"
    return "; ".join([text, *report.resampled, *report.notes])
