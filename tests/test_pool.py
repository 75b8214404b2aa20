"""The pool: one copy, many holders."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionzoo as vz
from visionzoo import pool
from visionzoo.backbones import pool_report, shared_backbone

NAME = "vit_nano_patch4_32"


@pytest.fixture(autouse=True)
def _pool_is_empty_before_and_after() -> Iterator[None]:
    gc.collect()
    assert pool_report() == []
    yield
    gc.collect()
    assert pool_report() == []


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """A trainable head that holds a handle."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = shared_backbone(NAME)
        self.fc = nn.Linear(self.backbone.info.pooled_dim, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone.features(images).pooled)


def _parameter_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def test_two_heads_hold_one_copy() -> None:
    one, two = Head(3), Head(5)
    assert one.backbone.module is two.backbone.module
    expected = _parameter_bytes(vz.create_backbone(NAME))
    assert one.backbone.nbytes == expected
    (line,) = pool_report()
    assert (line.key.name, line.nbytes, line.handles) == (NAME, expected, 2)
    # The heads themselves own nothing of it: neither their parameters nor their state dicts.
    assert set(one.state_dict()) == {"fc.weight", "fc.bias"}
    assert _parameter_bytes(one) == _parameter_bytes(one.fc)


@pytest.mark.long
def test_live_tensors_grow_by_one_copy_only() -> None:
    def live() -> int:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) is nn.Parameter]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    before = live()
    handles = [shared_backbone(NAME) for _ in range(4)]
    assert live() - before == sum(p.numel() * 4 for p in handles[0].module.parameters())


def test_one_forward_serves_both_heads(images: torch.Tensor) -> None:
    one, two = Head(3), Head(5)
    calls = []
    hook = one.backbone.module.register_forward_hook(lambda *_: calls.append(1))
    features = one.backbone.features(images)
    one.fc(features.pooled).sum().backward()
    two.fc(features.pooled).sum().backward()
    hook.remove()
    assert len(calls) == 1
    assert one.fc.weight.grad is not None
    assert two.fc.weight.grad is not None
    assert not features.pooled.requires_grad


def test_features_are_the_backbones(images: torch.Tensor) -> None:
    with shared_backbone(NAME) as shared:
        reference = vz.create_backbone(NAME).eval()
        reference.load_state_dict(shared.module.state_dict())
        with torch.no_grad():
            for ours, theirs in zip(shared.features(images), reference(images), strict=True):
                assert torch.equal(ours, theirs)
        assert shared.preprocess == reference.preprocess
        assert shared.info == reference.info


@pytest.mark.long
def test_other_arguments_are_other_copies() -> None:
    handles = [
        shared_backbone(NAME),
        shared_backbone(NAME, dtype=torch.bfloat16),
        shared_backbone(NAME, image_size=64),
        shared_backbone(NAME, in_chans=1),
        shared_backbone("timm/test_vit"),
        shared_backbone(NAME, device="meta"),
    ]
    assert len({id(h.module) for h in handles}) == len(handles) == len(pool_report())
    assert handles[1].nbytes * 2 == handles[0].nbytes
    report = pool_report()
    assert [line.nbytes for line in report] == sorted((line.nbytes for line in report), reverse=True)


def test_the_same_request_in_other_words_is_the_same_copy() -> None:
    a = shared_backbone(NAME)
    others = [
        shared_backbone(NAME, image_size=32),
        shared_backbone(NAME, image_size=(32, 32)),
        shared_backbone(NAME, device="cpu", dtype=torch.float32),
        shared_backbone(NAME, device=torch.device("cpu")),
    ]
    assert all(o.module is a.module for o in others)


def test_input_is_cast_to_the_copy(images: torch.Tensor) -> None:
    with shared_backbone(NAME, dtype=torch.float64) as shared:
        assert shared.features(images).pooled.dtype == torch.float64


@pytest.mark.long
def test_released_with_the_last_handle() -> None:
    first, second = shared_backbone(NAME), shared_backbone(NAME)
    parameter = weakref.ref(next(first.module.parameters()))
    first.release()
    first.release()
    assert pool_report()[0].handles == 1
    assert second.module is not None
    second.release()
    gc.collect()
    assert parameter() is None
    assert pool_report() == []


@pytest.mark.long
def test_released_when_collected() -> None:
    shared = shared_backbone(NAME)
    parameter = weakref.ref(next(shared.module.parameters()))
    del shared
    gc.collect()
    assert parameter() is None


def test_released_handle_says_so(images: torch.Tensor) -> None:
    with shared_backbone(NAME) as shared:
        pass
    for use in (lambda: shared.module, lambda: shared.features(images), shared.copy_for_training):
        with pytest.raises(ValueError, match="was released; call shared_backbone again"):
            use()
    with pytest.raises(ValueError, match="was released"):
        copy.deepcopy(shared)
    assert shared.nbytes == 0
    assert "released" in repr(shared)


def test_deepcopy_is_another_handle() -> None:
    head = Head(3)
    ema = copy.deepcopy(head)
    assert ema.backbone is not head.backbone
    assert ema.backbone.module is head.backbone.module
    assert ema.fc.weight is not head.fc.weight
    assert pool_report()[0].handles == 2


def test_handles_do_not_travel_between_processes() -> None:
    with shared_backbone(NAME) as shared, pytest.raises(TypeError, match="call shared_backbone in the other"):
        pickle.dumps(shared)


def test_eight_threads_build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    build = pool.create_backbone

    def slow(*args: Any, **kwargs: Any) -> Any:
        builds.append(threading.get_ident())
        waiting.wait(timeout=30)  # until all threads have asked: the seven others must be waiting for this build
        return build(*args, **kwargs)

    waiting = threading.Event()
    monkeypatch.setattr(pool, "create_backbone", slow)
    handles: list[pool.SharedBackbone] = []
    start = threading.Barrier(9)

    def ask() -> None:
        start.wait()
        handles.append(shared_backbone(NAME))

    vz.backbone_info(NAME)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    start.wait()
    while not any(len(e.holders) == 8 for e in list(pool._ENTRIES.values())):
        assert all(t.is_alive() for t in threads)
    assert handles == []
    waiting.set()
    for t in threads:
        t.join(timeout=30)
    assert len(builds) == 1
    assert len(handles) == 8
    assert len({id(h.module) for h in handles}) == 1
    assert pool_report()[0].handles == 8


def test_threads_that_come_and_go() -> None:
    """Builds, releases and collections in many threads leave neither copies nor errors behind."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(10):
                with shared_backbone(NAME, device="meta", in_chans=1 + (seed + i) % 2) as shared:
                    assert shared.module.in_chans == 1 + (seed + i) % 2
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


def test_failed_build_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    build = pool.create_backbone
    calls = []

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk is gone")
        return build(*args, **kwargs)

    monkeypatch.setattr(pool, "create_backbone", fails_once)
    with pytest.raises(OSError, match="the disk is gone"):
        shared_backbone(NAME)
    assert pool._ENTRIES == {}
    with shared_backbone(NAME) as shared:
        assert shared.module is not None
    assert len(calls) == 2


def test_frozen_and_in_eval_whatever_a_head_does(images: torch.Tensor) -> None:
    with shared_backbone(NAME) as shared:
        parent = nn.Sequential(shared.module)  # somebody registers the module, against advice
        parent.train()
        assert not any(m.training for m in shared.module.modules())
        parent.to("cpu").float().requires_grad_(False)
        before = {k: v.clone() for k, v in shared.module.state_dict().items()}
        for change in (
            lambda: shared.module.requires_grad_(True),
            lambda: parent.to(torch.bfloat16),
            lambda: parent.to("meta"),
            lambda: parent.load_state_dict({k: v + 1 for k, v in parent.state_dict().items()}),
            lambda: shared.module.load_state_dict(before),
            lambda: vz.load_weights(shared.module, {k: v + 1 for k, v in before.items()}),
        ):
            with pytest.raises(ValueError, match=r"a pooled backbone is shared and cannot .*copy_for_training"):
                change()
        assert all(torch.equal(v, before[k]) for k, v in shared.module.state_dict().items())
        assert not any(p.requires_grad for p in shared.module.parameters())
        shared.features(images)


def test_tampering_with_parts_is_noticed(images: torch.Tensor) -> None:
    with shared_backbone(NAME) as shared:
        next(shared.module.parameters()).requires_grad = True
        with pytest.raises(ValueError, match="somebody set requires_grad"):
            shared.features(images)
    with shared_backbone(NAME) as shared:
        next(iter(shared.module.children())).train()
        with pytest.raises(ValueError, match="somebody set requires_grad or train"):
            shared.features(images)


@pytest.mark.long
@pytest.mark.parametrize("name", [NAME, "timm/test_vit", "timm/test_resnet"])
def test_training_copies(name: str) -> None:
    with shared_backbone(name) as shared:
        model = shared.copy_for_training(drop_path=0.1)
        size = shared.info.image_size
        before = {k: v.clone() for k, v in shared.module.state_dict().items()}
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert model.training
        assert type(model) is type(vz.create_backbone(name))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 3, *size)).pooled.square().sum().backward()
        optimizer.step()
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(torch.equal(v, before[k]) for k, v in shared.module.state_dict().items())


def test_weights_are_told_apart_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    build = pool.create_backbone

    def record(*args: Any, weights: Any = None, **kwargs: Any) -> Any:
        asked.append(weights)
        return build(*args, **kwargs)

    monkeypatch.setattr(pool, "create_backbone", record)
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"1")
    one = shared_backbone(NAME, weights=file)
    same = shared_backbone(NAME, weights=str(file))
    file.write_bytes(b"22")  # training went on and saved again
    other = shared_backbone(NAME, weights=file)
    folder = shared_backbone(NAME, weights=tmp_path)
    named = shared_backbone(NAME, weights="timm:some_tag")
    assert one.module is same.module
    assert len({id(h.module) for h in (one, other, folder, named)}) == 4
    assert asked == [file, file, tmp_path, "timm:some_tag"]


@pytest.mark.long
def test_a_state_dict_has_no_name() -> None:
    with pytest.raises(ValueError, match="by name or path, not dict"):
        shared_backbone(NAME, weights={})  # type: ignore[arg-type]
