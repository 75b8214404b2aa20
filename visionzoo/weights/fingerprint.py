"""What a model computes, told by one name: the key of everything that is kept of its answers.

Weights alone do not say it. The same tensors give other numbers under another activation, norm epsilon, image size,
window or pooling, so the key is read off the whole tree of modules, with every plain value that stands in it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.types import Preprocess

#: Attributes that say what a module is called, how it was made or how it trains, and nothing of what it computes in
#: evaluation. ``preprocess`` is in the key on its own.
_BESIDE = {
    "training", "name", "describe", "preprocess", "said_preprocess", "architecture", "stated", "capabilities",
    "grad_checkpointing", "head_prefixes", "stem_key", "pyramid_levels", "feature_info", "pretrained_cfg",
    "default_cfg", "drop_rate", "drop_prob", "inplace", "output_dict", "tokenizer_source", "locked",
}  # fmt: skip
#: Where torch keeps functions that a forward pass goes through.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
#: Modules that do nothing in evaluation, whatever their rate.
_IDLE = ("Dropout", "DropPath", "Identity")


def model_fingerprint(
    model: nn.Module, *, preprocess: Preprocess | None = None, precision: str = "", context: object = ()
) -> str:
    """32 hex digits that change with everything that a model's answers in evaluation depend on.

    In the key are: the classes of all modules, their hooks and their plain attributes (so activation, epsilon, image
    size, pooling, windows), names, types, shapes and values of all parameters and buffers, preprocessing, precision
    (that of the arithmetic around the model: autocast and float32 matrix products), the kind of device, and the
    versions of the packages whose code runs. Names, dropout rates and what else matters only in training are not.

    Args:
        model: the part of a model whose answers are kept, on the device where it runs.
        preprocess: how pixels become its input.
        precision: what the caller computes in, such as Lightning's ``bf16-mixed``; autocast is read off by itself.
        context: whatever else the answer depends on (which features, a tokenizer, sentences); its ``repr`` is taken.
    """
    digest = hashlib.blake2b(digest_size=16)

    def add(*parts: object) -> None:
        digest.update("\0".join(map(str, parts)).encode("utf-8", "surrogatepass") + b"\n")

    packages: set[str] = set()
    for name, module in model.named_modules():
        classes = [c for c in type(module).__mro__ if c not in (nn.Module, object)]
        packages |= {c.__module__.partition(".")[0] for c in classes}
        if not type(module).__name__.startswith(_IDLE):
            add("module", name, *(f"{c.__module__}.{c.__qualname__}" for c in classes), *_attributes(module))
    device = "cpu"
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            device = tensor.device.type
            add(kind, name, tensor.dtype, tuple(tensor.shape))
            digest.update(raw(tensor))
    versions = {p: getattr(sys.modules.get(p), "__version__", "") for p in sorted(packages - {"torch"})}
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    add("arithmetic", device, precision, autocast, torch.get_float32_matmul_precision(), versions)
    add("preprocess", None if preprocess is None else sorted(preprocess.to_dict().items()))
    add("context", repr(context))
    return digest.hexdigest()


def _attributes(module: nn.Module) -> Iterator[str]:
    for key, value in sorted(vars(module).items()):
        if not key.startswith("_") and key not in _BESIDE:
            yield f"{key}={in_words(value)}"
        elif key in _HOOKS and value:
            yield f"{key}={in_words(list(value.values()))}"


def in_words(value: Any) -> str:
    """A value in words that are the same in every process: no addresses, no order of sets."""
    if value is None or isinstance(value, str | bytes | int | float | complex | PurePath | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(raw(value), digest_size=16).hexdigest()}"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__qualname__} {in_words(asdict(value))}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{in_words(k)}: {in_words(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(in_words, value))) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(in_words, value)) + ")"
    if isinstance(value, partial):
        return f"partial({in_words(value.func)}, {in_words(value.args)}, {in_words(value.keywords)})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor, as a buffer; of one without memory a word."""
    if tensor.is_meta:
        return b"meta"
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
