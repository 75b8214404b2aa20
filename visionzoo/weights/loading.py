"""Load weights of any known layout, strictly: all of them fit, or the model does not change and the error says why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.types import Preprocess
from visionzoo.weights.adapters import Layout
from visionzoo.weights.describe import describe_weights
from visionzoo.weights.preprocessing import (
    are_openais,
    decide_preprocess,
    description_of,
    stored_image_size,
    stored_preprocess,
)
from visionzoo.weights.reading import read_state_dict
from visionzoo.weights.recognise import own_keys, recognise
from visionzoo.weights.report import LoadReport, group_keys, mismatch
from visionzoo.weights.sources import resolve_source
from visionzoo.weights.stem import POLICIES, adapt_channels, policy_error
from visionzoo.weights.unwrap import unwrap

OTHER_PARTS = "other parts of the checkpoint"
HEAD = "classifier head, which this model does not have"
POOL = "attention pooling, which this model does not use"


class _Plan:
    """The state dict on its way into ``model``, and what happened to it so far."""

    def __init__(self, model: nn.Module, source: str, state: dict[str, Tensor]) -> None:
        self.model, self.source, self.state = model, source, state
        self.name: str = getattr(model, "name", type(model).__name__)
        self.heads: tuple[str, ...] = tuple(model.head_prefixes)  # type: ignore[arg-type]
        self.own: dict[str, Tensor] = model.state_dict()
        self.layout = "timm"
        self.ignored: dict[str, tuple[str, ...]] = {}
        self.resampled: list[str] = []
        self.notes: list[str] = []
        self.reset: list[str] = []

    def ignore(self, reason: str, keys: list[str]) -> None:
        if keys:
            self.ignored[reason] = self.ignored.get(reason, ()) + tuple(keys)

    def to_canonical(self) -> None:
        """Find the model's part in the state dict and give it timm's keys."""
        family: str = self.model.weights_family  # type: ignore[assignment]
        found = recognise(self.state, self.own, family, self.heads)
        if found is None:
            other = recognise(self.state, self.own, "timm", self.heads)
            kind = f"{other[1].about} ({other[1].family})" if other and other[1] else describe_weights(self.state)
            raise ValueError(
                f"weights from {self.source} do not fit {self.name} (family {family!r}); nothing was loaded. "
                f"They look like {kind}. Their keys: {group_keys(list(self.state))}"
            )
        part, layout = found
        self.ignore(OTHER_PARTS, [k for k in self.state if not k.startswith(part)])
        self.state = {k[len(part) :]: v for k, v in self.state.items() if k.startswith(part)}
        if layout is not None:
            self.layout = layout.name
            for key in self.state:
                if (reason := layout.ignored(key)) is not None:
                    self.ignore(reason, [key])
            self.state = layout.to_timm(self.state)

    def move_norm(self) -> None:
        """The last norm is ``norm`` before pooling and ``fc_norm`` after it; fine-tuning moves it (MAE, BEiT)."""
        for here, there in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
            wanted = {k for k in self.own if k.startswith(there)}
            stored = {k for k in self.state if k.startswith(here)}
            if stored and wanted and not any(k.startswith(here) for k in self.own) and not wanted & set(self.state):
                self.state = {(there + k[len(here) :] if k in stored else k): v for k, v in self.state.items()}
                self.notes.append(f"the final norm {here}* was used as {there}*, since {self.name} normalises there")

    def drop_zero_biases(self) -> None:
        """timm's DINOv3 leaves out biases that ended training at exactly zero; leaving them out changes nothing."""
        extra = [k for k in self.state if k.endswith(("attn.q_bias", "attn.v_bias")) and k not in self.own]
        zero = [k for k in extra if not self.state[k].any()]
        for key in zero:
            del self.state[key]
        self.ignore("biases of exactly zero, which this model leaves out", zero)

    def drop_pooling(self) -> None:
        """A model that averages patches can take a SigLIP tower without its pooling: timm's ``*_siglip_gap_*``."""
        if not any(k.startswith("attn_pool.") for k in self.own):
            self.ignore(POOL, [k for k in self.state if k.startswith("attn_pool.")])
            self.state = {k: v for k, v in self.state.items() if not k.startswith("attn_pool.")}

    def fit_stem(self, policy: str | None) -> None:
        """Bring the stem to the model's number of channels, as the policy says."""
        if policy is not None and policy not in POLICIES:
            raise ValueError(f"in_chans_policy={policy!r} is unknown; choose one of {', '.join(POLICIES)} or None")
        key: str = self.model.stem_key  # type: ignore[assignment]
        own, stored = self.own.get(key), self.state.get(key)
        if own is None or stored is None or own.ndim != 4 or stored.ndim != 4 or own.shape[1] == stored.shape[1]:
            return
        if policy is None:
            raise policy_error(self.name, key, stored.shape[1], own.shape[1])
        if policy == "random":
            self.state[key] = own
            self.reset.append(key)
        else:
            self.state[key] = adapt_channels(stored, own.shape[1], policy)
        self.notes.append(
            f"the stem went from {stored.shape[1]} to {own.shape[1]} channels by in_chans_policy={policy!r}"
        )

    def fit_head(self, reset_head: bool) -> None:
        """A bare model ignores a stored head; a head that does not fit keeps the model's own values."""
        own = {k for k in self.own if k.startswith(self.heads)}
        stored = [k for k in self.state if k.startswith(self.heads)]
        if not own:
            self.ignore(HEAD, stored)
            self.state = {k: v for k, v in self.state.items() if k not in stored}
            return
        if not reset_head:
            return
        # A layer is kept or loaded whole: a loaded weight with a fresh bias would be neither.
        unfit = {_layer(k) for k in own if k not in self.state or self.state[k].shape != self.own[k].shape}
        unfit_keys = [k for k in self.own if k in own and _layer(k) in unfit]
        if unfit_keys:
            self.state = {k: v for k, v in self.state.items() if _layer(k) not in unfit or k not in own}
            self.state |= {k: self.own[k] for k in unfit_keys}
            self.reset += unfit_keys

    def resample(self, stored_size: tuple[int, int] | None) -> None:
        """Bring position tables to the model's size, from the one (H, W) that the weights were made for if known."""
        self.state, self.resampled = self.model.adapt_state_dict(self.state, stored_size)  # type: ignore[operator]

    def check(self) -> None:
        """Compare strictly, before anything is changed.

        Raises:
            ValueError: listing every missing, unexpected, misshapen and non-finite tensor.
        """
        shared = [k for k in self.own if k in self.state]
        misshapen = [
            f"{k} {_shape(self.state[k])} instead of {_shape(self.own[k])}"
            for k in shared
            if self.state[k].shape != self.own[k].shape
            or self.state[k].is_floating_point() != self.own[k].is_floating_point()
        ]
        groups = [
            ("missing", [k for k in self.own if k not in self.state]),
            ("unexpected", [k for k in self.state if k not in self.own]),
            ("misshapen", misshapen),
        ]
        if any(keys for _, keys in groups):
            raise ValueError(mismatch(self.name, self.source, describe_weights(self.state), groups))
        if broken := [k for k in shared if k not in self.reset and not torch.isfinite(self.state[k]).all()]:
            raise ValueError(
                f"weights from {self.source} hold NaN or infinity in {group_keys(broken)}; nothing was loaded. "
                "Use an earlier checkpoint"
            )
        if empty := [k for k in shared if self.own[k].is_meta]:
            raise ValueError(
                f"{self.name} has no memory yet ({group_keys(empty)} on the meta device); call to_empty() first"
            )

    def copy(self) -> LoadReport:
        kept = set(self.reset)
        with torch.no_grad():
            for key, tensor in self.own.items():
                if key not in kept:
                    tensor.copy_(self.state[key])
        return LoadReport(
            source=self.source,
            model=self.name,
            layout=self.layout,
            loaded=len(self.own) - len(kept),
            total=len(self.own),
            resampled=tuple(self.resampled),
            reset=tuple(self.reset),
            ignored=self.ignored,
            notes=tuple(self.notes),
        )


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} {tensor.dtype}"


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    in_chans_policy: str | None = None,
    reset_head: bool = True,
) -> LoadReport:
    """Fill ``model`` with weights from anywhere, in any known layout.

    Where the configuration beside the weights says how they want their images, ``model.preprocess`` follows it (at the
    model's own size), and the report says so; where the model was built with another one on request, it is an error.
    Position tables and relative-position tables are resampled to the model's size. A stored head is ignored by a model
    without one; of a model with a head, only the head may keep its own values, with a warning. Everything else has to
    fit exactly.

    Args:
        model: a backbone, or a model with its attributes ``weights_family``, ``head_prefixes``, ``stem_key`` and
            ``adapt_state_dict``.
        source: a file (safetensors, torch, ``.npz``, Lightning checkpoint), a folder, ``hf-hub:org/name``,
            ``timm:<name>.<tag>``, or a state dict. Averaged weights are preferred where a checkpoint has both.
        in_chans_policy: what to do when the stored stem has another number of channels: ``repeat``, ``mean`` or
            ``random``; None refuses.
        reset_head: False makes a head that does not fit an error.

    Returns:
        What was loaded, resampled, reset and ignored; ``print`` it.

    Raises:
        FileNotFoundError: when the source is not there.
        ValueError: when it cannot be read safely, or does not fit; the model is then unchanged.
    """
    preprocess: Preprocess | None = None
    path: Path | None = None
    metadata: dict[str, str] = {}
    stored_size: tuple[int, int] | None = None
    current = getattr(model, "preprocess", None)
    if isinstance(source, Mapping):
        name = "the given state dict"
        state, _ = unwrap(source)
    else:
        path = resolve_source(source, first=getattr(model, "weight_files", ()))
        name = str(source)
        state, metadata = read_state_dict(path)
        with description_of(name):
            stored_size = stored_image_size(path, metadata)
    if isinstance(current, Preprocess):
        with description_of(name):
            preprocess = stored_preprocess(name, path, current, metadata, state)
        if preprocess is not None:
            said = getattr(model, "said_preprocess", {})
            preprocess = decide_preprocess(current, said=said, stored=preprocess, source=name)
    if (check := getattr(model, "check_origin", None)) is not None:
        with description_of(name):
            check(name, path, state, metadata, preprocess)
    elif are_openais(state) and getattr(getattr(model, "config", None), "act", "quick_gelu") != "quick_gelu":
        warnings.warn(
            f"weights from {name} are OpenAI's, which were trained with QuickGELU, and this model computes another "
            "activation, as timm does under this name; the names with _clip_quickgelu_ compute theirs",
            stacklevel=2,
        )
    plan = _Plan(model, name, state)
    plan.to_canonical()
    plan.move_norm()
    plan.drop_zero_biases()
    plan.drop_pooling()
    plan.fit_stem(in_chans_policy)
    plan.fit_head(reset_head)
    plan.resample(stored_size)
    plan.check()
    if preprocess is not None and preprocess != current:
        plan.notes.append(
            f"images are prepared as these weights want: mean {preprocess.mean}, std {preprocess.std}, "
            f"{preprocess.interpolation}, {preprocess.resize_mode} at crop {preprocess.crop_pct}"
        )
    report = plan.copy()
    if preprocess is not None:
        model.preprocess = preprocess  # type: ignore[assignment]
    if head := [k for k in report.reset if k.startswith(plan.heads)]:
        warnings.warn(
            f"the head of {plan.name} was not loaded from {name}, which has none that fits; it keeps its own values "
            f"and has to be trained: {group_keys(head)}",
            UserWarning,
            stacklevel=2,
        )
    return report


def install_load_hook(model: nn.Module) -> None:
    """Make plain ``model.load_state_dict(foreign)`` work for every known layout, strictly.

    The keys are converted before they are compared. Buffers and pretraining tokens that timm's model has no place for
    are dropped; heads, other parts and other sizes are not: use :func:`load_weights` for these.
    """
    if not getattr(model, "_converts_on_load", False):
        model._converts_on_load = True  # type: ignore[assignment]
        model.register_load_state_dict_pre_hook(_convert_in_place)


def _convert_in_place(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    found = {k[len(prefix) :]: k for k in state_dict if k.startswith(prefix)}
    heads: tuple[str, ...] = tuple(module.head_prefixes)  # type: ignore[arg-type]
    family: str = module.weights_family  # type: ignore[assignment]
    recognised = recognise(found, own_keys(module), family, heads, parts=("",))
    if recognised is None or recognised[1] is None:
        return
    layout: Layout = recognised[1]
    converted = layout.to_timm({k: state_dict[full] for k, full in found.items()})
    for full in found.values():
        del state_dict[full]
    state_dict.update({prefix + k: v for k, v in converted.items()})
