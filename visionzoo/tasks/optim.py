"""Parameter groups, optimizer and schedule, the same for every task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from visionzoo.files import similar_names

#: Never decayed, whatever a model says itself: tokens, position tables and temperatures are no weights of a layer.
NO_DECAY_PATTERNS = (
    "*pos_embed*", "*positional_embedding", "*cls_token", "*reg_token", "*dist_token", "*mask_token",
    "*relative_position_bias_table", "*rel_pos_h", "*rel_pos_w", "*logit_scale", "*logit_bias",
)  # fmt: skip


def param_groups(model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """AdamW groups of a model's trainable parameters.

    Norms, biases and other vectors, and everything in :data:`NO_DECAY_PATTERNS` or ``model.no_weight_decay()``, are not
    decayed. With ``layer_decay`` below 1 the learning rate shrinks by it with each layer away from the head
    (arXiv 2106.08254, as timm groups layers through ``model.group_matcher``).

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay``, ``lr_scale``, ``name`` and ``param_names``.

    Raises:
        ValueError: when nothing is trainable, or for a layer decay where the model has no order of layers.
    """
    from timm.optim import param_groups_layer_decay

    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be in (0, 1]; 1 gives every layer the same learning rate")
    names = {id(p): n for n, p in model.named_parameters()}
    own: Any = getattr(model, "no_weight_decay", set)
    no_decay = {*own(), *NO_DECAY_PATTERNS}
    if layer_decay < 1:
        if not hasattr(model, "group_matcher"):
            raise ValueError(f"layer_decay={layer_decay}: {type(model).__name__} has no one order of layers; use 1")
        raw = param_groups_layer_decay(
            model, weight_decay=weight_decay, no_weight_decay_list=no_decay, layer_decay=layer_decay
        )
    else:
        raw = list(_two_groups(model, weight_decay, no_decay))
    groups = []
    for group in raw:
        scale = group.get("lr_scale", 1.0)
        decayed = "decay" if group["weight_decay"] else "no decay"
        layer = f"lr x {scale:.4g}, " if layer_decay < 1 else ""
        groups.append(
            {
                "params": group["params"],
                "lr": lr * scale,
                "lr_scale": scale,
                "weight_decay": group["weight_decay"],
                "name": layer + decayed,
                "param_names": [names[id(p)] for p in group["params"]],
            }
        )
    if not groups:
        raise ValueError("nothing to train: every parameter of the model is frozen")
    return groups


def _two_groups(model: nn.Module, weight_decay: float, no_decay: set[str]) -> Iterator[dict[str, Any]]:
    from timm.optim import param_groups_weight_decay

    yield from param_groups_weight_decay(model, weight_decay=weight_decay, no_weight_decay_list=no_decay)


def group_table(groups: list[dict[str, Any]]) -> str:
    """One line per group: learning rate, weight decay, tensors, parameters and the first and last names."""
    lines = [f"{'lr':>10}  {'decay':>7}  {'tensors':>7}  {'parameters':>11}  names"]
    for group in groups:
        names, count = group["param_names"], sum(p.numel() for p in group["params"])
        shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        lines.append(f"{group['lr']:10.3g}  {group['weight_decay']:7.3g}  {len(names):7d}  {count:11,d}  {shown}")
    return "\n".join(lines)


def make_adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], fused: bool = True) -> Optimizer:
    """AdamW over groups from :func:`param_groups`.

    ``fused`` runs one kernel for all tensors; CPU and CUDA have it. Where it does not hold (16-bit AMP with clipping),
    pass False and torch takes its foreach form.
    """
    first = groups[0]["params"][0]
    fused = fused and first.device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in groups[0]["params"])
    # param_names would make torch print and store every name; the table above is their only reader
    plain = [{k: v for k, v in g.items() if k != "param_names"} for g in groups]
    return AdamW(plain, lr=lr, betas=betas, fused=fused or None)


def check_optimizer(name: str) -> str:
    """``name``, in lower case.

    Raises:
        ValueError: for one that timm has not, or that a training step here cannot drive.
    """
    if name.lower() == "adamw":  # without timm, whose import takes a while
        return "adamw"
    from timm.optim import get_optimizer_info, list_optimizers

    known = [str(n) for n in list_optimizers()]
    if name.lower() not in known:
        near = similar_names(name.lower(), known)
        hint = f"did you mean {' or '.join(near)}?" if near else "such as adamw, lamb, lion, muon or sgd"
        raise ValueError(f"optimizer={name!r} is none of timm's; {hint}")
    if get_optimizer_info(name.lower()).second_order:
        raise ValueError(f"optimizer={name!r} needs second derivatives, which this training step does not compute")
    return name.lower()


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], fused: bool = True
) -> Optimizer:
    """An optimizer over groups from :func:`param_groups`: AdamW, or another of timm's by its name.

    Args:
        name: as :func:`check_optimizer` gives it.
        groups: each with its own learning rate and weight decay.
        lr: of groups that have none.
        betas: AdamW's two momenta; any other has its own.
        fused: see :func:`make_adamw`.

    Raises:
        ValueError: for an optimizer whose package is not installed.
    """
    if name == "adamw":
        return make_adamw(groups, lr=lr, betas=betas, fused=fused)
    from timm.optim import create_optimizer_v2

    plain = [{k: v for k, v in g.items() if k != "param_names"} for g in groups]
    try:
        return create_optimizer_v2(plain, opt=name, lr=lr)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise ValueError(f"optimizer={name!r} cannot be made here: {str(error).splitlines()[0]}") from error


def skip_on(optimizer: Optimizer, flag: Tensor) -> bool:
    """Have the next step change nothing where ``flag``, a float32 scalar on the device, is 1; nobody waits to see it.

    Returns:
        whether this optimizer can: fused ones do, by what torch's own GradScaler tells them.
    """
    groups = optimizer.param_groups
    device = flag.device
    same = all(not isinstance(p, DTensor) and p.device == device for g in groups for p in g["params"])
    if not same or not isinstance(optimizer, AdamW) or not all(g.get("fused") for g in groups):
        return False
    optimizer.found_inf, optimizer.grad_scale = flag, None  # type: ignore[attr-defined]
    return True


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """The factor on the learning rate of optimizer step ``step`` (0-based), a pure function of its arguments.

    Linear from ``1 / warmup_steps`` to 1 over the warm-up, then half a cosine from 1 down to ``floor`` at
    ``total_steps`` (arXiv 1608.03983 without restarts), where it stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


class Schedule(LambdaLR):
    """Each group's own learning rate times ``factor(step)``; to be stepped once per optimizer step.

    Groups that are added later, as Lightning's BaseFinetuning does, keep the learning rate that they are given.
    """

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group."""
        return [*super().get_lr(), *(group["lr"] for group in self.optimizer.param_groups[len(self.base_lrs) :])]


def total_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
