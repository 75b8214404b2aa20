"""When a shortcut may be taken: rearranged products and kernels of one machine, in place of the modules themselves.

A shortcut reads a layer's parameters and computes past the layer. It must step aside where somebody has put something
in or around that layer, and where the operators themselves are what is asked for. What torch says of that only in
private is asked here and nowhere else; where it no longer says it, the answer is the safe one: no shortcut.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

_any_global_hook = getattr(_module, "_has_any_global_hook", lambda: True)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_transforms = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", lambda: 1)


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the parameters of ``layer`` alone say what it computes.

    Not so for a subclass of ``kinds`` or a wrapper in its place (an adapter, a quantised layer, a parametrisation), for
    a layer with a hook, or one whose ``forward`` was replaced.
    """
    return (
        type(layer) in kinds
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and (torch.compiler.is_compiling() or ("forward" not in vars(layer) and not _any_global_hook()))
    )


def is_recorded() -> bool:
    """Whether operators are written down or taken apart, not only run.

    So it is under ``torch.compile``, ``torch.export``, ``torch.jit.trace`` (TensorBoard's ``add_graph``, ONNX), a
    dispatch mode (counters of operations), ``torch.func``'s transforms and forward-mode AD. A kernel of this machine
    must not get into a graph that runs elsewhere, and the others know no rule for it.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _dispatch_modes() > 0
        or _transforms() is not None
        or getattr(forward_ad, "_current_level", 0) >= 0
    )


def is_open(*sizes: int) -> bool:
    """Whether a graph is being written that leaves one of these sizes open, so that nothing may be decided by it."""
    return any(isinstance(size, torch.SymInt) for size in sizes)
