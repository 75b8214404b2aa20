"""Graphs and counts that other tools make of our models: no kernel of this machine in them, and the same numbers."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_checks import perturb
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import visionzoo as vz
from visionzoo.macs import count_macs

NAMES = ("vit_nano_patch4_32", "swin_nano_patch2_window4_32", "swinv2_nano_patch2_window4_32")


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return perturb(vz.create_classifier(name, num_classes=3)).eval()


def _images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_traced_model_is_saved_and_takes_other_batches(name: str, grad: bool) -> None:
    model, file = _model(name), io.BytesIO()
    with torch.set_grad_enabled(grad):
        torch.jit.save(torch.jit.trace(model, _images()), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "mkldnn::" not in str(loaded.inlined_graph)
    with torch.no_grad():
        torch.testing.assert_close(loaded(_images(5)), model(_images(5)), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.slow)])
@pytest.mark.parametrize("grad", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_model_takes_other_batches(name: str, grad: bool) -> None:
    model, batch = _model(name), torch.export.Dim("batch", min=1, max=64)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(model, (_images(),), dynamic_shapes=({0: batch},), strict=False)
    assert not [n for n in exported.graph.nodes if "mkldnn" in str(n.target)]
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(_images(5)), model(_images(5)), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_tensorboard_draws_the_graph(name: str, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer, torch.no_grad():
        writer.add_graph(_model(name), _images())
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) > 1000


@pytest.mark.parametrize("tower", ["image", "text"])
def test_both_towers_of_a_clip_are_traced(tower: str) -> None:
    torch.manual_seed(0)
    clip = perturb(vz.create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16)).eval()
    short, long = clip.tokenizer(["a cat"]), clip.tokenizer(["a photo of a cat on a chair"])
    module = clip.visual if tower == "image" else clip.text
    first, other = (_images(), _images(5)) if tower == "image" else (short, long)
    with torch.no_grad():
        traced = torch.jit.trace(module, first)
        torch.testing.assert_close(traced(other), module(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_torch_func_maps_over_images(name: str) -> None:
    model, images = _model(name), _images()
    with torch.no_grad():
        mapped = torch.func.vmap(lambda x: model(x[None])[0])(images)
        torch.testing.assert_close(mapped, model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_derivatives_are_those_of_the_backward_pass(name: str) -> None:
    model, images = _model(name).double(), _images().double()
    way = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernel for CPUs has none
        _, slope = torch.func.jvp(model, (images,), (way,))
        images.requires_grad_()
        (grad,) = torch.autograd.grad(model(images).sum(), images)
    torch.testing.assert_close(slope.sum(), (grad * way).sum(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_own_counter_counts_every_layer(name: str, dtype: torch.dtype) -> None:
    model, images = _model(name).to(dtype), _images().to(dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    with torch.no_grad():
        ours = count_macs(lambda: model(images))
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert counter.get_total_flops() > 2 * 2 * linear  # versions differ in whether they see attention as well
    assert counter.get_total_flops() / 2 <= ours * 1.001


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_answer(name: str) -> None:
    model = _model(name)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert model(_images()[:0]).shape == (0, 3)


@pytest.mark.slow
def test_a_trace_leaves_nothing_behind_that_a_later_step_would_meet() -> None:
    # in a process of its own: layouts and indices are cached per process
    code = (
        "import torch, visionzoo as vz\n"
        "m = vz.create_classifier('swin_nano_patch2_window4_32', num_classes=3)\n"
        "x = torch.randn(2, 3, 40, 40)\n"
        "with torch.no_grad(): torch.jit.trace(m.eval(), x)\n"
        "m.train()(x).sum().backward()\n"
        "assert all(p.grad is not None for p in m.parameters())\n"
        "print('trained')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "trained", done.stderr[-2000:]
