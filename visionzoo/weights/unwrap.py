"""Find the state dict inside what training scripts save around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Entries of a checkpoint that hold weights, best first. Averaged weights are what papers report, so they come first,
#: as in timm; a DINO teacher is the network that is evaluated.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "teacher",
    "student",
    "params",
)
#: Put into keys by torch.compile, FSDP1 and activation checkpointing, at any depth.
_WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
#: Stripped when every key has it. ``opt/target/`` and ``params/`` come from JAX.
_PREFIXES = ("module.", "model.", "model_ema.", "ema.", "backbone.", "teacher.", "student.", "opt/target/", "params/")


def unwrap(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The plain state dict in ``checkpoint``.

    Goes into the entries named in :data:`CONTAINERS`, then strips wrappers from the keys. In a Lightning checkpoint the
    network is what lies under ``model.``; where Lightning averages weights, its ``state_dict`` is the averaged one.

    Returns:
        The state dict, and the names of the wrappers that were taken off, outermost first.

    Raises:
        ValueError: when there are no tensors to be found.
    """
    steps: list[str] = []
    lightning = "pytorch-lightning_version" in checkpoint
    current: Mapping[str, Any] = checkpoint
    while not any(isinstance(v, Tensor) for v in current.values()):
        inside = next((c for c in CONTAINERS if isinstance(current.get(c), Mapping) and current[c]), None)
        if inside is None:
            found = ", ".join(map(repr, list(current)[:8])) or "nothing"
            raise ValueError(
                f"there is no state dict in it: the top level holds {found}; expected tensors or one of {CONTAINERS}"
            )
        steps.append(inside)
        current = current[inside]
    state = {str(k): v for k, v in current.items() if isinstance(v, Tensor)}
    if lightning and any(k.startswith("model.") for k in state):
        state = {
            k: v for k, v in state.items() if k.startswith("model.")
        }  # losses and metrics have tensors of their own
    if "n_averaged" in state:  # torch.optim.swa_utils.AveragedModel counts its updates
        del state["n_averaged"]
    return _strip(state, steps), steps


def _strip(state: dict[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    for part in _WRAPPER_PARTS:
        if any(part in k for k in state):
            state = {k.replace(part, ""): v for k, v in state.items()}
            steps.append(part)
    while state:
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k[len(prefix) :]: v for k, v in state.items()}
        steps.append(prefix)
    return state
