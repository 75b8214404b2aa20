"""Low-rank adapters (arXiv 2106.09685) through peft, without changing what a model is or what its layers are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def add_adapters(model: nn.Module, *, rank: int, alpha: float, keep: tuple[str, ...]) -> None:
    """Put an adapter beside every linear layer of the frozen trunk, in place; what trains already goes on training.

    Args:
        model: what to adapt.
        rank: width of the adapters.
        alpha: their output is scaled by alpha / rank.
        keep: prefixes of modules that get none, such as a head.

    Raises:
        ValueError: without peft, for a rank below 1, or for a backbone without linear layers.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ValueError('finetune=lora needs the package peft; run: pip install "visionzoo[lora]"') from error
    if rank < 1 or not math.isfinite(alpha):
        raise ValueError(f"lora_rank={rank} must be at least 1 and lora_alpha={alpha} finite")
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not f"{n}.".startswith(keep)]
    if not targets:
        raise ValueError(
            f"finetune=lora needs linear layers outside {', '.join(keep)}, and {model.name} has none; use full or head"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    scale: Any = alpha  # peft annotates int and multiplies
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=scale, target_modules=targets), model)
    for parameter in trained:  # peft freezes everything but its adapters
        parameter.requires_grad_(True)


def with_statistics(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those that learn from what passes by, gradient or not: beside adapters they are to stay as they were."""
    return [module for module in modules if isinstance(module, _BatchNorm)]


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy with every adapter added into its layer, under the keys of the model without adapters."""
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            adapter: Any = module
            adapter.merge()
            merged.set_submodule(name, adapter.get_base_layer())
    vars(merged).pop("peft_config", None)
    return merged
