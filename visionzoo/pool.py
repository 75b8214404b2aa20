"""One resident copy of a backbone for everyone who only reads it.

Several heads and predictors on the same frozen backbone share its memory through handles. A copy lives as long as a
handle on it does. Training never touches the pool: it takes a copy of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from visionzoo.layers.graft import graft
from visionzoo.registry import backbone_info, create_backbone
from visionzoo.types import BackboneInfo, Features, Preprocess

if TYPE_CHECKING:
    from visionzoo.backbones.base import Backbone


@dataclass(frozen=True, kw_only=True)
class PoolKey:
    """What makes two requests the same copy."""

    name: str
    weights: str | None
    version: tuple[Any, ...]  #: of local weight files: name, size and time of change, so that a new file is a new copy
    image_size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    in_chans: int
    in_chans_policy: str | None


class PoolEntry(NamedTuple):
    """One line of :func:`pool_report`."""

    key: PoolKey
    nbytes: int  #: held by parameters and buffers
    handles: int


@dataclass(eq=False)
class _PooledBackbone:
    lock: threading.Lock = field(default_factory=threading.Lock)  #: held while the copy is built
    holders: set[int] = field(default_factory=set)
    module: Any = None
    nbytes: int = 0


_ENTRIES: dict[PoolKey, _PooledBackbone] = {}
# Re-entrant: a handle may be collected, and so released, while this very thread holds the lock.
_LOCK = threading.RLock()


class Pooled(nn.Module):
    """Mixin of pooled modules: frozen, in eval, where they are.

    A pooled module may end up inside somebody's model, whose ``train()`` and ``to(...)`` reach it. ``train()`` has no
    effect. What would change it for its other users is a ValueError: ``requires_grad_(True)``, loading a state dict, or
    a move to another device or dtype.
    """

    def train(self, mode: bool = True) -> Pooled:
        """Nothing: a pooled copy stays in eval mode."""
        del mode
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Pooled:
        """Nothing for False. Raises ValueError for True: a pooled copy is not trained."""
        if requires_grad:
            _refuse("be trained")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pooled:
        del recurse
        before = next(self.parameters())
        after = fn(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            _refuse(f"move from {before.device}, {before.dtype} to {after.device}, {after.dtype}")
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        _refuse("load other weights")

    def adapt_state_dict(self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None) -> NoReturn:
        """Reached by :func:`visionzoo.load_weights`."""
        del state_dict, stored_size
        _refuse("load other weights")


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"a pooled backbone is shared and cannot {what}; take copy_for_training() of its handle, "
        "or ask shared_backbone for the device, dtype and weights you need"
    )


class SharedBackbone:
    """A handle on a pooled backbone. Made by :func:`shared_backbone`.

    Keep the handle, not ``module``: the copy is freed when its last handle is released or collected. A handle is no
    ``nn.Module``, so a head that holds one neither trains, moves nor saves the backbone. ``deepcopy`` gives another
    handle on the same copy.
    """

    def __init__(self, key: PoolKey, entry: _PooledBackbone, info: BackboneInfo) -> None:
        self.key = key
        self._info = info
        self._entry: _PooledBackbone | None = entry
        # Adding ourselves comes before the entry is (again) in the table: a collection in between may have removed it.
        with _LOCK:
            entry.holders.add(id(self))
            _ENTRIES[key] = entry
        self._finalizer = weakref.finalize(self, _drop, key, entry, id(self))
        self._finalizer.atexit = False

    @property
    def module(self) -> Backbone:
        """The resident copy: frozen and in eval."""
        if self._entry is None:
            raise ValueError(f"this handle on {self.key.name} was released; call shared_backbone again")
        return self._entry.module

    @property
    def info(self) -> BackboneInfo:
        """What is known of the copy; its preprocessing is that of the weights."""
        return replace(self._info, preprocess=self.preprocess)

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared for it."""
        return self.module.preprocess

    @property
    def nbytes(self) -> int:
        """Bytes held by the resident copy, however many handles there are; 0 once this handle is released."""
        return 0 if self._entry is None else self._entry.nbytes

    def features(self, images: Tensor) -> Features:
        """One forward pass, for as many heads as want its result.

        Args:
            images: (B, C, H, W) normalised; cast to the copy's device and dtype.

        Returns:
            Features without gradients, which trainable heads may take as input.

        Raises:
            ValueError: if the handle was released, or a part of the copy was made trainable or put in train mode.
        """
        module = self.module
        if any(p.requires_grad for p in module.parameters()) or any(m.training for m in module.modules()):
            _refuse("be trained, and somebody set requires_grad or train() on a part of it")
        with torch.no_grad():
            return module(images.to(self.key.device, self.key.dtype))

    def copy_for_training(self, *, drop_path: float = 0.0) -> Backbone:
        """An independent copy with the same weights, preprocessing, device and dtype, in train mode."""
        key = self.key
        with torch.device(key.device):
            model = create_backbone(key.name, image_size=key.image_size, in_chans=key.in_chans, drop_path=drop_path)
        model.to(dtype=key.dtype).load_state_dict(self.module.state_dict())
        model.preprocess = self.preprocess
        return model

    def release(self) -> None:
        """Give the handle up. Releasing twice is fine."""
        self._finalizer()
        self._entry = None

    def __enter__(self) -> SharedBackbone:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedBackbone:
        del memo
        self.module  # noqa: B018  a released handle cannot be copied
        assert self._entry is not None
        return SharedBackbone(self.key, self._entry, self._info)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a handle on the pooled {self.key.name} holds for one process; call shared_backbone in the other"
        )

    def __repr__(self) -> str:
        state = "released" if self._entry is None else f"{self.nbytes / 2**20:.1f} MiB"
        return f"SharedBackbone({self.key.name!r}, device={self.key.device}, dtype={self.key.dtype}, {state})"


def shared_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    in_chans: int = 3,
    in_chans_policy: str | None = None,
) -> SharedBackbone:
    """A handle on the one resident copy of a backbone for these arguments; built on the first request.

    Thread-safe: of several threads that ask at once, one builds and the others wait. A failed build is not remembered.

    Args:
        name: as for :func:`visionzoo.create_backbone`.
        weights: a path or a name, see :func:`visionzoo.load_weights`. None for random ones, the same for all holders.
        image_size: pixels, one number or (height, width); None for the size the backbone was trained at.
        device: None for the current default device.
        dtype: of parameters and buffers; None for the current default dtype.
        in_chans: channels of the images.
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: as :func:`visionzoo.create_backbone`; or for weights that are a state dict, which has no name to be
            recognised by.
    """
    if weights is not None and not isinstance(weights, (str, Path)):
        raise ValueError(
            f"shared_backbone takes weights by name or path, not {type(weights).__name__}; save them first"
        )
    info = backbone_info(name, image_size)
    key = PoolKey(
        name=name,
        weights=None if weights is None else str(weights),
        version=_version(weights),
        image_size=info.image_size,
        device=torch.empty(0, device=device).device,  # "cuda" and None become a device with an index
        dtype=dtype or torch.get_default_dtype(),
        in_chans=in_chans,
        in_chans_policy=in_chans_policy,
    )
    with _LOCK:
        entry = _ENTRIES.setdefault(key, _PooledBackbone())
        handle = SharedBackbone(key, entry, info)
    try:
        with entry.lock:
            if entry.module is None:
                entry.module = _build(key, weights)
                entry.nbytes = _nbytes(entry.module)
    except BaseException:
        handle.release()
        raise
    return handle


def pool_report() -> list[PoolEntry]:
    """Every resident copy, with the bytes that it holds and its number of handles, largest first."""
    with _LOCK:
        built = [PoolEntry(k, e.nbytes, len(e.holders)) for k, e in _ENTRIES.items() if e.module is not None]
    return sorted(built, key=lambda line: -line.nbytes)


def _build(key: PoolKey, weights: str | Path | None) -> nn.Module:
    with torch.device(key.device):
        model = create_backbone(
            key.name,
            weights=weights,
            image_size=key.image_size,
            in_chans=key.in_chans,
            in_chans_policy=key.in_chans_policy,
        )
    return graft(model.to(key.device, key.dtype).eval().requires_grad_(False), Pooled)


def _drop(key: PoolKey, entry: _PooledBackbone, holder: int) -> None:
    with _LOCK:
        entry.holders.discard(holder)
        if not entry.holders and _ENTRIES.get(key) is entry:
            del _ENTRIES[key]


def _version(weights: str | Path | None) -> tuple[Any, ...]:
    if weights is None or not (path := Path(weights)).exists():
        return ()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


def _nbytes(model: nn.Module) -> int:
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr() or id(tensor)] = storage.nbytes()  # on the meta device every pointer is 0
    return sum(storages.values())
