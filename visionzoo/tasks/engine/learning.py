"""When each held-out image was learned, and forgotten: what the validations of a run said of it, one after another."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

#: Images that are followed, at most; in a checkpoint each takes 32 bytes.
FOLLOWED = 100_000
_NAMES = ("position", "first_right", "wrong_until", "times_right")


class Learning(Callback):
    """Follow held-out images through the validations of a fit, by the task's ``results.answers``. It is in checkpoints.

    Attributes:
        validations: so far.
        epoch: of the last of them.
        position: (N,) int64, rising, of the images in their source.
        first_right: (N,) int64, the epoch, from 1 on, whose validation was the first to have it right; 0 for none.
        wrong_until: (N,) int64, the epoch whose validation was the last to have it wrong; 0 for none.
        times_right: (N,) int64, validations that had it right.
    """

    def __init__(self) -> None:
        self.validations = self.epoch = 0
        self.position = self.first_right = self.wrong_until = self.times_right = torch.empty(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"validations": self.validations, "epoch": self.epoch, **{name: getattr(self, name) for name in _NAMES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.validations, self.epoch = state_dict["validations"], state_dict["epoch"]
        for name in _NAMES:
            setattr(self, name, state_dict[name])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a validation of a fit into account."""
        found = getattr(getattr(pl_module, "results", None), "answers", None)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and found is not None:
            self.take(found.position, found.logits.argmax(1) == found.labels, trainer.current_epoch + 1)

    def take(self, position: Tensor, right: Tensor, epoch: int) -> None:
        """(n,) positions, rising, and whether each was answered right (n,), in the validation of an epoch."""
        if not len(self.position):
            self.position = position[:: -(-len(position) // FOLLOWED)].clone()  # evenly spaced, the same each time
            self.first_right, self.wrong_until, self.times_right = (torch.zeros_like(self.position) for _ in range(3))
        self.validations, self.epoch = self.validations + 1, epoch
        if not len(position):
            return
        place = torch.searchsorted(position, self.position).clamp(max=len(position) - 1)
        here = position[place] == self.position  # an unreadable image may be missing
        was_right = right[place] & here
        self.times_right = self.times_right + was_right
        first = was_right & (self.first_right == 0)
        self.first_right = torch.where(first, epoch, self.first_right)
        self.wrong_until = torch.where(~right[place] & here, epoch, self.wrong_until)

    def of(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) positions -> first_right, wrong_until and times_right (n,) of each; -1 for what was not followed."""
        nothing = torch.full_like(position, -1)
        if not len(self.position):
            return nothing, nothing, nothing
        place = torch.searchsorted(self.position, position).clamp(max=len(self.position) - 1)
        here = self.position[place] == position
        columns = (self.first_right, self.wrong_until, self.times_right)
        return tuple(torch.where(here, column[place], nothing) for column in columns)  # type: ignore[return-value]

    def slowest(self, count: int) -> frozenset[int]:
        """Positions of images that were learned last: right at the last validation, and wrong for longest before it."""
        late = self.wrong_until * (self.wrong_until < self.epoch)
        order = (late * (self.validations + 1) - self.times_right).argsort(descending=True, stable=True)[:count]
        return frozenset(self.position[order[late[order] > 0]].tolist())
