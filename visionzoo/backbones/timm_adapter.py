"""``timm/<name>``: any timm model under the backbone contract, with timm's own code and parameter names.

The model stays the object that ``timm.create_model(name, num_classes=0)`` returns; its class gains
:class:`TimmBackbone`. What must be known of it (layout of its output, widths, prefix tokens) is read once per name off
a copy on the meta device.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag
from torch import Tensor, nn

from visionzoo.backbones.base import Backbone
from visionzoo.backbones.timm_api import pretrained_cfg
from visionzoo.layers.fast_path import is_open
from visionzoo.layers.graft import graft
from visionzoo.layers.position import resample_positions
from visionzoo.registry import BackboneSpec
from visionzoo.types import Features, PyramidLevel
from visionzoo.weights.preprocessing import timm_preprocess

PREFIX = "timm/"
#: A model whose levels all have one stride (ViT, MLP-Mixer) gives this many, evenly spaced, as the native ViTs do.
ISOTROPIC_LEVELS = 4


@dataclass(frozen=True)
class _Facts:
    """What one timm model is like, at one input size."""

    options: tuple[tuple[str, Any], ...]  #: keyword arguments for ``timm.create_model``
    image_size: tuple[int, int]
    layout: str  #: of the trunk's output: ``NCHW``, ``NHWC``, ``NLC``, ``NCL``, or ``prefix`` if it holds no patches
    pooled_dim: int
    grid_dim: int
    stride: int
    prefix_tokens: int
    pyramid: tuple[tuple[int, PyramidLevel], ...]  #: index for ``forward_intermediates``, and what it gives
    any_size: bool


class TimmBackbone(Backbone):
    """A timm model that answers to the backbone contract. Made by ``create_backbone("timm/<name>")``.

    ``pooled`` is timm's ``forward_head(forward_features(x), pre_logits=True)``. Models with several branches (CrossViT,
    CoaT) give the grid of their last one. ``pyramid`` is timm's ``forward_intermediates``, without the final norm.
    Some families with ``any_size`` want multiples of their stride or block; timm's assertion then says so.
    """

    weights_family = "timm"
    _facts: _Facts

    @property
    def open_in_graphs(self) -> bool:  # type: ignore[override]
        """Convolutions, and ViTs whose tables timm resamples in a graph too; others decide by the size that a graph is
        made with."""
        return self._facts.layout == "NCHW" or self._fits_any_grid

    @property
    def _fits_any_grid(self) -> bool:
        """Whether it is a ViT that resamples its positions and pads images to whole patches."""
        return (
            self._facts.layout == "NLC" and {"dynamic_img_size", "dynamic_img_pad"} <= dict(self._facts.options).keys()
        )

    # The contract's base class stands before timm's class in the method order, so timm's methods are called past it.

    def forward_features(self, images: Tensor) -> Any:
        """(B, C, H, W) -> timm's own output: a tensor, or a list of them for models with several branches."""
        return super(Backbone, self).forward_features(images)  # type: ignore[misc]

    def forward_head(self, x: Any, pre_logits: bool = False) -> Tensor:
        """timm's own head: -> (B, pooled_dim), or (B, num_classes)."""
        return super(Backbone, self).forward_head(x, pre_logits=pre_logits)  # type: ignore[misc]

    def forward(self, images: Tensor) -> Features:
        """(B, C, H, W) -> :class:`Features`; where timm drops the patches, its last map is the grid."""
        if self._facts.layout != "prefix":
            return super().forward(images)
        x, maps = super(Backbone, self).forward_intermediates(  # type: ignore[misc]
            images, indices=1, output_fmt="NCHW"
        )
        return Features(self.forward_head(x, pre_logits=True), maps[-1], x)

    def split(self, x: Any, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """timm's layout (NCHW, NHWC, NLC or NCL) -> grid (B, D, h, w) and prefix (B, P, D)."""
        layout = self._facts.layout
        if isinstance(x, (list, tuple)):
            x = x[-1]
        if layout == "NCHW" or layout == "NHWC":
            grid = x if layout == "NCHW" else x.permute(0, 3, 1, 2)
            return grid, grid.new_zeros(grid.shape[0], 0, self.grid_dim)
        if layout == "prefix":
            raise ValueError(f"{self.name} drops its patches in forward_features; call the backbone for its grid")
        tokens = x if layout == "NCL" else x.transpose(1, 2)
        prefix, patches = tokens[..., : self.num_prefix_tokens], tokens[..., self.num_prefix_tokens :]
        if is_open(*image_size) and self._fits_any_grid:
            # rounded up; ONNX divides negative numbers the other way, so not by -(-n // stride)
            rows, columns = ((n + self.stride - 1) // self.stride for n in image_size)
            grid_size: tuple[int, int] | None = (rows, columns)
        else:
            grid_size = _token_grid(image_size, self.stride, patches.shape[-1])
        if grid_size is None:
            raise ValueError(
                f"{self.name} gave {patches.shape[-1]} tokens, which fit no {self.stride}-pixel grid of a "
                f"{image_size[0]}x{image_size[1]} image; use a multiple of {self.stride}"
            )
        return patches.unflatten(-1, grid_size), prefix.transpose(1, 2)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> timm's intermediate maps (B, C_i, H_i, W_i), finest first."""
        self.require("pyramid")
        indices = [i for i, _ in self._facts.pyramid]
        return super(Backbone, self).forward_intermediates(  # type: ignore[misc]
            images, indices=indices, output_fmt="NCHW", intermediates_only=True
        )

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's, with the preprocessing that this model has."""
        return {**vars(self)["pretrained_cfg"], **pretrained_cfg(self)}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of :attr:`pretrained_cfg`."""
        return self.pretrained_cfg

    # What training needs to know.

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's own, with the second head of a distilled model kept."""
        reset = super(Backbone, self).reset_classifier  # type: ignore[misc]
        options: dict[str, Any] = {} if global_pool is None else {"global_pool": global_pool}
        if "distillation" in inspect.signature(reset).parameters:  # else RepViT loses its second head here
            options["distillation"] = getattr(self.get_submodule("head"), "distillation", False)
        reset(num_classes, **options)
        self.num_classes = num_classes
        classifier = self.get_classifier()
        if global_pool is not None and isinstance(classifier, nn.Linear):  # concatenating poolings widen its input
            self.pooled_dim = classifier.in_features

    def get_classifier(self) -> Any:
        """timm's head: a module, or a pair of them for distilled models."""
        return super(Backbone, self).get_classifier()  # type: ignore[misc]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups. Raises ValueError where timm describes none."""
        inner = getattr(super(Backbone, self), "group_matcher", None)
        if inner is None:
            raise ValueError(f"timm describes no layer groups for {self.name}; train it without layer-wise decay")
        return inner(coarse=coarse)

    def no_weight_decay(self) -> set[str]:
        """The names that timm gives; none for most CNNs."""
        inner = getattr(super(Backbone, self), "no_weight_decay", None)  # most CNNs have none
        return set(inner()) if inner is not None else set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's own switch."""
        super(Backbone, self).set_grad_checkpointing(enable)  # type: ignore[misc]

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample position tables with timm's own filter for this family, where it has one."""
        own = {k: v.shape for k, v in self.state_dict().items()}
        out, notes = dict(state_dict), list[str]()
        if (grids := self._oblong_grids(out.get("pos_embed"), stored_size)) is not None:
            old, new = grids
            prefix = own["pos_embed"][1] - math.prod(new)
            out["pos_embed"] = resample_positions(out["pos_embed"], new, old_grid=old, prefix_tokens=prefix)
            notes.append(f"pos_embed resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens")
        tables = [k for k, v in out.items() if k in own and v.shape != own[k] and _is_position_table(k)]
        filters = (getattr(sys.modules[c.__module__], "checkpoint_filter_fn", None) for c in type(self).__mro__)
        resample = next((f for f in filters if f is not None), None)
        if resample is None or own.keys() - state_dict.keys():
            return out, notes  # of another architecture, which the filter may choke on; the strict comparison says what
        for key, value in resample(dict(out), self).items() if tables else ():
            # The filter also bends what is no table (patch sizes) and drops what it takes for a foreign layout.
            if key in tables and value.shape == own[key]:
                notes.append(f"{key} resampled from {tuple(out[key].shape)} to {tuple(value.shape)}")
                out[key] = value
        return out, notes

    def _oblong_grids(
        self, table: Tensor | None, stored_size: tuple[int, int] | None
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The (h, w) grids of a stored table (1, P + h * w, D) and of this model, where they are known to differ in
        shape: timm's filters take every stored grid for a square one."""
        own, embed = getattr(self, "pos_embed", None), getattr(self, "patch_embed", None)
        feat_size, grid = getattr(embed, "dynamic_feat_size", None), getattr(embed, "grid_size", None)
        if table is None or not isinstance(own, Tensor) or feat_size is None or grid is None or stored_size is None:
            return None
        if table.ndim != 3 or own.ndim != 3 or table.shape[2] != own.shape[2]:
            return None
        old, new = tuple(feat_size(stored_size)), tuple(grid)
        same_prefix = table.shape[1] - math.prod(old) == own.shape[1] - math.prod(new)
        square = old[0] == old[1] and table.shape[1] != own.shape[1]  # the filter does it
        return (old, new) if same_prefix and old != new and not square else None


def _is_position_table(key: str) -> bool:
    return any(word in key for word in ("pos_embed", "rel_pos", "relative_position", "attention_bias"))


def timm_spec(name: str) -> BackboneSpec:
    """Describe ``"timm/<name>"`` or ``"timm/<name>.<tag>"``; the tag sets the preprocessing and names the weights.

    Raises:
        ValueError: for a name or a tag that timm does not know; the message suggests near ones.
    """
    model_name = name.removeprefix(PREFIX)
    arch, tag = split_model_name_tag(model_name)
    if not is_model(arch):
        near = difflib.get_close_matches(arch.lower(), timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(PREFIX + n for n in near)}?" if near else "timm.list_models() lists them."
        raise ValueError(f"timm {timm.__version__} has no model {arch!r}; {hint}")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3, cutoff=0.3) or tags
        known = f"known are {', '.join(near)}" if near else "it has none; leave the tag out"
        raise ValueError(f"timm {timm.__version__} has no pretrained tag {tag!r} for {arch!r}; {known}")
    cfg = _pretrained_cfg(model_name)
    return BackboneSpec(
        name=name,
        family=timm.models.model_entrypoint(arch).__module__.rpartition(".")[2],
        build=partial(_build, model_name),
        paper=_paper(cfg),
        licence=cfg.license or "unknown",
        weights=f"timm:{arch}.{cfg.tag}" if cfg.tag and cfg.has_weights else None,
    )


def timm_names(pattern: str) -> list[str]:
    """All ``"timm/<name>"`` that match an fnmatch pattern, which starts with ``timm/``; tags are not listed."""
    return sorted(n for n in (PREFIX + m for m in timm.list_models()) if fnmatch.fnmatchcase(n, pattern))


def _pretrained_cfg(model_name: str) -> Any:
    cfg = get_pretrained_cfg(model_name)
    return timm.models.PretrainedCfg() if cfg is None else cfg  # timm's defaults, as timm itself takes them


def _paper(cfg: Any) -> str:
    ids = (cfg.paper_ids,) if isinstance(cfg.paper_ids, str) else tuple(cfg.paper_ids or ())
    return " ".join(part for part in (cfg.paper_name, *ids) if part) or "unknown"


def _build(model_name: str, *, image_size: tuple[int, int] | None, in_chans: int, drop_path: float) -> TimmBackbone:
    facts = _facts(model_name, image_size, in_chans, drop_path > 0)
    options = dict(facts.options)
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    model: Any = graft(timm.create_model(model_name, num_classes=0, **options), TimmBackbone)
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):  # or BEiT, EVA and Swin V2 read the weight past the layer
            module.qkv_bias_separate = True
    cfg = _pretrained_cfg(model_name)
    model._facts = facts
    model.name = PREFIX + model_name
    model.image_size, model.in_chans = facts.image_size, in_chans
    model.pooled_dim, model.grid_dim, model.stride = facts.pooled_dim, facts.grid_dim, facts.stride
    model.num_prefix_tokens = facts.prefix_tokens
    model.pyramid_levels = tuple(level for _, level in facts.pyramid)
    model.capabilities = frozenset(
        (["pyramid"] if facts.pyramid else []) + (["any_size"] if facts.any_size else []),
    )
    model.preprocess = timm_preprocess(cfg.to_dict(), facts.image_size)
    model.head_prefixes = tuple(dict.fromkeys(_head_prefix(model, c) for c in _sequence(cfg.classifier))) or ("head.",)
    if cfg.first_conv:
        model.stem_key = f"{_sequence(cfg.first_conv)[0]}.weight"
    return model


def _sequence(value: Any) -> Sequence[str]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _head_prefix(bare: nn.Module, classifier: str) -> str:
    """The prefix of all keys that come with timm's ``classifier``: it may be one layer of a head, beside a norm."""
    while "." in classifier:
        parent = classifier.rpartition(".")[0]
        if any(k.startswith(f"{parent}.") for k in bare.state_dict()):
            break
        classifier = parent
    return f"{classifier}."


@cache
def _facts(model_name: str, image_size: tuple[int, int] | None, in_chans: int, drop_path: bool) -> _Facts:
    """Read the facts off a copy on the meta device.

    Raises:
        ValueError: for an option that the model cannot take, or a model without pooled features.
    """
    cfg = _pretrained_cfg(model_name)
    plain = _meta_model(model_name, ())
    own_size = (int(cfg.input_size[1]), int(cfg.input_size[2]))
    options: dict[str, Any] = {}
    if drop_path and not _takes(plain, "drop_path_rate"):
        raise ValueError(f"{PREFIX}{model_name} has no stochastic depth; use drop_path=0")
    if in_chans != 3:
        options["in_chans"] = in_chans
    dynamic = _takes(plain, "dynamic_img_size") and hasattr(
        plain, "pos_embed"
    )  # Swin would rebuild its masks each time
    if dynamic:
        options["dynamic_img_size"] = True  # the same numbers at the built size
        if _takes(plain, "dynamic_img_pad"):
            options["dynamic_img_pad"] = True
    if image_size is not None and _takes(plain, "img_size"):
        options["img_size"] = image_size
    size = image_size or own_size
    if not hasattr(plain, "forward_head") or "pre_logits" not in inspect.signature(plain.forward_head).parameters:
        raise ValueError(f"{PREFIX}{model_name} is an encoder without pooled features; choose a classification model")
    try:
        model = _meta_model(model_name, tuple(options.items()))
        with torch.no_grad():
            x = model.forward_features(torch.zeros(1, in_chans, *size, device="meta"))
            pooled = model.forward_head(x, pre_logits=True)
    except NotImplementedError as e:
        raise ValueError(f"{PREFIX}{model_name} has no pooled features ({e}); choose a classification model") from e
    except (AssertionError, RuntimeError, TypeError, ValueError) as e:
        if image_size is None and in_chans == 3:
            raise
        raise ValueError(
            f"timm cannot build {model_name} with image_size={size}, in_chans={in_chans}: {e}; "
            f"its own are image_size={own_size}, in_chans=3"
        ) from e
    layout, grid_dim, stride, prefix = _layout(model, x, size)
    return _Facts(
        options=tuple(options.items()),
        image_size=size,
        layout=layout,
        pooled_dim=pooled.shape[1],
        grid_dim=grid_dim,
        stride=stride,
        prefix_tokens=prefix,
        pyramid=_pyramid(model),
        any_size=dynamic or not cfg.fixed_input_size,
    )


def _meta_model(model_name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    with torch.device("meta"):
        return timm.create_model(model_name, num_classes=0, **dict(options)).eval()


def _takes(model: nn.Module, option: str) -> bool:
    """Whether a constructor of the model's class, or of a class it inherits from, names the option."""
    classes = (c for c in type(model).__mro__ if c not in (nn.Module, object))
    return any(option in inspect.signature(c).parameters for c in classes)


def _layout(model: Any, x: Any, size: tuple[int, int]) -> tuple[str, int, int, int]:
    """Layout, grid_dim, stride and number of prefix tokens of the trunk's output ``x`` at an input of ``size``."""
    if isinstance(x, (list, tuple)):
        x = x[-1]
    last = model.feature_info[-1]
    width, stride = int(last["num_chs"]), int(last["reduction"])
    if x.ndim == 4:
        layout = "NHWC" if getattr(model, "output_fmt", None) == "NHWC" else "NCHW"
        dim, h = (x.shape[3], x.shape[1]) if layout == "NHWC" else (x.shape[1], x.shape[2])
        return layout, dim, _stride(size[0], h, stride), 0
    channels_last = x.shape[2] == width or x.shape[2] == model.num_features
    layout, length, dim = ("NLC", x.shape[1], x.shape[2]) if channels_last else ("NCL", x.shape[2], x.shape[1])
    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is None:  # CoaT, VOLO, CrossViT: class tokens that timm does not count
        prefix = next((p for p in range(3) if _token_grid(size, stride, length - p)), None)
    if prefix is None:  # PiT: forward_features returns the class tokens alone
        return "prefix", dim, stride, length
    if _token_grid(size, stride, length - prefix) is None:  # a merger behind the last stage
        stride = round((size[0] * size[1] / (length - prefix)) ** 0.5)
    return layout, dim, stride, prefix


def _stride(pixels: int, cells: int, declared: int) -> int:
    """timm's declared stride where it is that of the output; borders make the quotient differ a little from it."""
    return declared if abs(pixels / cells - declared) < declared / 2 else round(pixels / cells)


def _token_grid(image_size: tuple[int, int], stride: int, tokens: int) -> tuple[int, int] | None:
    """The (h, w) grid that ``tokens`` cells form; borders are dropped or padded, depending on the family."""
    rows, columns = ((-(-s // stride), s // stride) for s in image_size)
    for h, w in product(rows, columns):  # torch 2.8's compiler does not trace next(..., None)
        if h * w == tokens:
            return h, w
    return None


def _pyramid(model: Any) -> tuple[tuple[int, PyramidLevel], ...]:
    if not hasattr(model, "forward_intermediates"):
        return ()
    levels = [PyramidLevel(channels=int(d["num_chs"]), stride=int(d["reduction"])) for d in model.feature_info]
    indices = list(range(len(levels)))
    if len({level.stride for level in levels}) == 1 and len(levels) > ISOTROPIC_LEVELS:
        indices = [len(levels) * i // ISOTROPIC_LEVELS - 1 for i in range(1, ISOTROPIC_LEVELS + 1)]
    return tuple((i, levels[i]) for i in indices)
