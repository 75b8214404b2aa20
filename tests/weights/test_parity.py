"""Every (family, format): the peer's random weights give the peer's numbers here, and go back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peers import PAIRS, Pair, images, perturb
from safetensors.torch import load_file
from torch import Tensor, nn

from visionzoo.weights import export_weights, load_weights
from visionzoo.weights.adapters import LAYOUTS
from visionzoo.weights.exporting import facts_of

TRANSFORMERS = [n for n in PAIRS if not n.startswith("torchvision")]
#: What timm's model has no place for, so that it cannot come back.
LOST = ("mask_token", "pooler.dense")


def build(pair: Pair) -> nn.Module:
    peer = perturb(pair.peer())
    if pair.prepare is not None:
        pair.prepare(peer)
    return peer


def assert_close(result: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    worst = (result - reference).abs().max().item()
    assert worst <= tolerance * max(1.0, reference.abs().max().item())


def assert_same_weights(back: dict[str, Tensor], original: dict[str, Tensor], registers: bool) -> None:
    """Bit for bit, except that DINOv2's class token and its position come back as their sum."""
    kept = {k for k in original if not any(lost in k for lost in LOST)}
    assert {k for k in back if not any(lost in k for lost in LOST)} == kept
    if registers:
        cls, table = (next(k for k in kept if k.endswith(n)) for n in ("cls_token", "position_embeddings"))
        total = original[cls] + original[table][:, :1]
        assert torch.equal(back[cls] + back[table][:, :1], total)
        assert torch.equal(back[table][:, 1:], original[table][:, 1:])
        kept -= {cls, table}
    for key in kept:
        assert torch.equal(back[key], original[key]), key


@pytest.mark.parametrize("name", list(PAIRS))
def test_peer_in_memory_gives_the_same_outputs_and_goes_back(name: str) -> None:
    pair = PAIRS[name]
    peer, ours, x = build(pair), pair.ours(), images()
    report = load_weights(ours, peer.state_dict())
    assert pair.layout in report.layout
    assert report.share == 1
    assert not report.reset
    reference = pair.run_peer(peer, x)
    assert_close(pair.run_ours(ours, x), reference)
    back = LAYOUTS[report.layout].from_timm(ours.state_dict(), facts_of(ours))
    assert_same_weights(back, peer.state_dict(), registers=name == "dinov2_registers")
    if not name.startswith("vit_mae"):  # its decoder stays behind
        peer.load_state_dict(back, strict=True)
        assert_close(pair.run_peer(peer, x), reference, 1e-6)


@pytest.mark.parametrize("name", ["vit", "swin", "torchvision_swin_v2", "beit"])
def test_gradients_agree(name: str) -> None:
    pair = PAIRS[name]
    peer, ours = build(pair), pair.ours()
    load_weights(ours, peer.state_dict())
    grads = []
    for model, run in ((peer, pair.run_peer), (ours, pair.run_ours)):
        x = images().requires_grad_()
        run(model, x).square().sum().backward()
        grads.append((x.grad, next(p.grad for p in model.parameters() if p.ndim == 4)))
    for reference, result in zip(*grads, strict=True):
        assert_close(result, reference, 1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_saved_folder_loads_and_is_written_again(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    peer, ours, x = build(pair), pair.ours(), images()
    peer.save_pretrained(tmp_path / "hub")
    report = load_weights(ours, tmp_path / "hub")
    assert report.layout == f"transformers_{pair.layout}"
    assert_close(pair.run_ours(ours, x), pair.run_peer(peer, x))
    written = load_file(export_weights(ours, tmp_path / "out" / "model.safetensors", layout="transformers"))
    original = load_file(tmp_path / "hub" / "model.safetensors")
    assert_same_weights(written, original, registers=name == "dinov2_registers")
    (tmp_path / "out" / "config.json").write_bytes((tmp_path / "hub" / "config.json").read_bytes())
    again = type(peer).from_pretrained(tmp_path / "out").eval()
    assert_close(pair.run_peer(again, x), pair.run_peer(peer, x), 1e-6)


@pytest.mark.long
def test_each_state_dict_is_recognised_by_one_layout_only(tmp_path: Path) -> None:
    for name, pair in PAIRS.items():
        peer = pair.peer()
        dicts = [peer.state_dict()]
        if name in TRANSFORMERS:
            peer.save_pretrained(tmp_path / name)
            dicts.append(load_file(tmp_path / name / "model.safetensors"))
        for state in dicts:
            assert len([n for n, layout in LAYOUTS.items() if layout.matches(state)]) == 1, name
        assert not any(layout.matches(pair.ours().state_dict()) for layout in LAYOUTS.values() if layout.name != "deit")
