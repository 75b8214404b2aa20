"""The activation that CLIP weights were trained with: what is known of it beside their tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionzoo.weights.preprocessing import are_openais, read_json

#: transformers' names of activations, and what its configurations leave out because it is their default.
_TRANSFORMERS_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_TRANSFORMERS_DEFAULTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """What is written down about some CLIP weights."""

    activation: str | None = None  #: None where nothing says it
    origin: str = "nothing says it"  #: where this was read


def clip_record(path: Path | None, keys: Collection[str], metadata: Mapping[str, str]) -> ClipRecord:
    """What lies beside a weights file, in its header, or in its keys.

    Args:
        path: the file; None for a state dict.
        keys: of the state dict, as stored.
        metadata: the file's header.

    Raises:
        ValueError: for a configuration that is not JSON, or an activation that no model here has.
    """
    if are_openais(keys):  # all its models compute QuickGELU
        return ClipRecord(activation="quick_gelu", origin="they are OpenAI's")
    if path is not None:
        own = read_json(path.with_name("config.json"))
        if "schema_version" in own and own.get("task") == "clip":
            activation = own.get("architecture", {}).get("activation")
            return ClipRecord(activation=activation, origin=str(path.with_name("config.json")))
        theirs = path.with_name("open_clip_config.json")
        if (path.name.startswith("open_clip") or not own) and (config := read_json(theirs)):
            return ClipRecord(activation=_open_clip_activation(config.get("model_cfg", {})), origin=str(theirs))
        if own.get("model_type") in _TRANSFORMERS_DEFAULTS:
            return ClipRecord(
                activation=transformers_activation(own, str(path.with_name("config.json"))),
                origin=str(path.with_name("config.json")),
            )
    if "activation" in metadata and "schema_version" in metadata:
        return ClipRecord(activation=metadata["activation"], origin="its header")
    return ClipRecord()


def _open_clip_activation(model_cfg: Mapping[str, Any]) -> str:
    if model_cfg.get("quick_gelu"):
        return "quick_gelu"
    act = (model_cfg.get("text_cfg") or {}).get("act_kwargs") or {}
    return "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"


def transformers_activation(config: Mapping[str, Any], origin: str) -> str:
    """The activation of a CLIP or SigLIP of transformers, by our name.

    Raises:
        ValueError: for one that no model here has, or towers that differ.
    """
    default = _TRANSFORMERS_DEFAULTS[config["model_type"]]
    found = {(config.get(part) or {}).get("hidden_act", default) for part in ("text_config", "vision_config")}
    unknown = found - set(_TRANSFORMERS_ACTIVATIONS)
    if unknown or len(found) > 1:
        raise ValueError(
            f"{origin} names the activations {', '.join(sorted(map(str, found)))}; both towers must have the same, one "
            f"of {', '.join(_TRANSFORMERS_ACTIVATIONS)}"
        )
    return _TRANSFORMERS_ACTIVATIONS[found.pop()]
