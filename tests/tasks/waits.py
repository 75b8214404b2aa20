"""What would make the host wait for a GPU, seen on a CPU.

Every tensor counts as one of the device, but for those that were made without naming one: they are the host's, and what
is computed of them alone is too. To read a value of the device, or to bring one there other than through
``visionzoo.types.to_device``, is a wait.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operators whose result or its shape the host must see.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
#: Methods that give values to Python.
METHODS = {"tolist", "numpy", "__array__", "cpu", "item", "__bool__", "__float__", "__int__", "__index__"}
#: What makes a tensor of values that Python holds: on a device, a copy.
FROM_VALUES = {"tensor", "as_tensor", "new_tensor", "from_numpy", "asarray"}
#: Where a GPU is asked nothing: (file, function).
BESIDE = {
    ("flags.py", "read"),  # a copy in page-locked memory, whose event is over
    ("dataset.py", "batch"),  # loaders, here in this process
    ("ssl_samples.py", "batch"),
    ("types.py", "_moved"),  # of a batch, from page-locked memory
    ("types.py", "to_device"),
}


class Waits:
    """Counts waits by place."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self._host: dict[int, weakref.ref[Tensor]] = {}
        self._modes = _Functions(self), _Operators(self)

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    def is_host(self, tensor: Tensor) -> bool:
        """Whether a tensor of any shape is the host's."""
        kept = self._host.get(id(tensor))
        return kept is not None and kept() is tensor

    def mark(self, result: Any, *, host: bool) -> None:
        """Note whose the tensors in a result are."""
        for tensor in _tensors(result):
            if host:
                self._host[id(tensor)] = weakref.ref(tensor)
            else:
                self._host.pop(id(tensor), None)

    def wait(self, what: str) -> None:
        """Count one, unless it is known to be none."""
        frames, frame = [], sys._getframe(2)
        while frame is not None and len(frames) < 8:
            if "/torch/" not in frame.f_code.co_filename:
                frames.append(frame)
            frame = frame.f_back  # type: ignore[assignment]
        names = [(Path(f.f_code.co_filename).name, f.f_code.co_name) for f in frames]
        if not BESIDE.intersection(names):
            self.seen[f"{what}: {[f'{Path(f.f_code.co_filename).name}:{f.f_lineno}' for f in frames]}"] += 1


class _Functions(TorchFunctionMode):
    """What Python asks of torch."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, waits = kwargs or {}, self.waits
        name = getattr(func, "__name__", "")
        given = list(_tensors((args, kwargs)))
        host = all(waits.is_host(t) for t in given)
        named = kwargs.get("device") is not None
        moves = name in ("to", "cuda") and (named or any(_is_place(a, waits) for a in args[1:]))
        if not host and name in METHODS:
            waits.wait(f"Tensor.{name}")
        if name in FROM_VALUES and (named or (name == "new_tensor" and not host)):
            waits.wait(name)
        if moves and host:
            waits.wait("copy to the device")
        result = func(*args, **kwargs)
        if moves and host and isinstance(result, Tensor):  # on a GPU it would be another one
            result = result.detach()
        if not given:
            waits.mark(result, host=not named)
        elif moves or (named and host):
            waits.mark(result, host=False)
        return result


class _Operators(TorchDispatchMode):
    """What is run in the end, backward passes included."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, waits = kwargs or {}, self.waits
        name, given = func.overloadpacket.__name__, list(_tensors((args, kwargs)))
        hosts = [waits.is_host(t) for t in given]
        if not all(hosts):
            if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
                waits.wait(name)
            indices = [t for t in (args[1] if name in ("index", "index_put", "index_put_") else ()) if t is not None]
            by_mask = any(t.dtype in (torch.bool, torch.uint8) for t in indices)
            if by_mask and not (name != "index" and args[2].numel() == 1):  # which is a masked fill
                waits.wait(f"{name} by a mask")
            if any(waits.is_host(t) and t.ndim for t in given):
                waits.wait(f"{name} of both the host's and the device's")
        result = func(*args, **kwargs)
        if given and all(hosts):
            waits.mark(result, host=True)
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _is_place(argument: Any, waits: Waits) -> bool:
    return isinstance(argument, str | torch.device) or (isinstance(argument, Tensor) and not waits.is_host(argument))
