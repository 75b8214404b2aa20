"""Weights, gradients and the optimizer's state spread over all processes: ``--trainer.strategy fsdp``, also on a CPU.

Lightning's own ``FSDPStrategy`` wraps the task in torch's first FSDP, and refuses the CPU. This one is torch's
``fully_shard`` (FSDP2), which keeps modules and keys as they are, with checkpoints that one process can read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, OptimStateKeyType, fully_shard

#: Modules with at least this share of all parameters are gathered on their own, one after the other.
UNIT = 0.01
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes. A task asks for it in ``configure_model``, see :meth:`shard`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **kwargs)

    # As with other strategies weights are restored first (the model is sharded already), so that loaders know where to
    # go on when they are made; the optimizer follows once there is one.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: weights are restored before there is an optimizer, as with other strategies."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning loads the optimizer's state."""
        return True

    def setup_environment(self) -> None:
        """One group of all processes: data parallel, no tensor parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Spread the parameters of ``model``, the same on every process, block by block."""
        if isinstance(model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        least = UNIT * sum(p.numel() for p in model.parameters())
        for block in _blocks(model):
            if sum(p.numel() for p in block.parameters()) >= least:
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def full_state(self, model: nn.Module) -> dict[str, Any]:
        """The whole state of ``model`` on rank 0, nothing elsewhere. Call it on every rank."""
        return get_model_state_dict(model, options=WHOLE)

    # An evaluation may leave a rank without images. Nobody must wait for it, so all weights are gathered before.

    def on_validation_start(self) -> None:
        """Gather the weights once for all held-out batches."""
        for module in self._sharded():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def on_validation_end(self) -> None:
        """Shard them again."""
        for module in self._sharded():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    def _sharded(self) -> Iterator[FSDPModule]:
        assert self.model is not None
        return (m for m in self.model.modules() if isinstance(m, FSDPModule))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read an ordinary checkpoint, of one process or several, and give each process its part.

        Raises:
            FileNotFoundError, ValueError: see :class:`visionzoo.tasks.engine.checkpoint.AtomicCheckpointIO`.
        """
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        module = self.lightning_module
        assert module is not None
        set_model_state_dict(module, dict(checkpoint["state_dict"]), options=WHOLE)  # which changes the dict
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Give each process its part of the optimizers' states in a checkpoint."""
        module = self.lightning_module
        assert module is not None
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # by the numbers of parameters in the file, by their names in memory
            named = FullyShardedDataParallel.rekey_optim_state_dict(stored, OptimStateKeyType.PARAM_NAME, module)
            set_optimizer_state_dict(module, optimizer, named, options=WHOLE)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor of any shape that may be spread over several."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's lists of blocks, which run one after the other; not those inside them."""
    for child in model.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
