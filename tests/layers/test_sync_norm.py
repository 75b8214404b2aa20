"""Norms over all processes: which become what, in place, and back. Two processes: tests/tasks/test_ssl_processes.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import visionzoo as vz
from visionzoo.layers.sync_norm import SyncNorm1d, synchronise
from visionzoo.tasks.lightning_private import SyncNorms


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/lcnet_035"])
def test_every_norm_is_synchronised_in_place_and_keeps_its_activation(name: str) -> None:
    model = vz.create_backbone(name, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    before, keys = model(images).pooled, list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    tensors = {k: id(p) for k, p in model.named_parameters()}
    sync = SyncNorms()
    assert sync.apply(model) is model
    changed = [(a, type(m)) for a, m in zip(kinds, model.modules(), strict=True) if type(m) is not a]
    assert changed
    assert all("Sync" in now.__name__ and issubclass(now, was) for was, now in changed)
    assert torch.equal(model(images).pooled, before)
    assert list(model.state_dict()) == keys
    assert {k: id(p) for k, p in model.named_parameters()} == tensors
    sync.revert(model)
    assert [type(m) for m in model.modules()] == kinds


def test_a_kind_that_is_not_known_is_named() -> None:
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), Own(2))
    with pytest.raises(ValueError, match=r"sync_batchnorm does not know Own \(it knows BatchNorm1d"):
        synchronise(model)
    assert type(model[0]) is nn.BatchNorm2d, "nothing is changed"


def test_what_was_synchronised_from_the_start_stays_so() -> None:
    model, sync = nn.Sequential(SyncNorm1d(2)), SyncNorms()
    sync.revert(sync.apply(model))
    assert type(model[0]) is SyncNorm1d
