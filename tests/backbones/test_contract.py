"""One contract, every backbone: the registry's, whatever it holds, and a small model of each timm family."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from backbone_checks import TIMM_FAMILIES, assert_close, build, images, timm_twin

import visionzoo as vz
from visionzoo.backbones import require_capability
from visionzoo.backbones.base import Backbone
from visionzoo.registry import measure_backbone
from visionzoo.types import CAPABILITIES, BackboneInfo

NATIVE = vz.list_backbones()
SIZES = ("nano", "tiny", "small", "medium", "base", "large", "huge", "giant", "so400m")


def _meta(name: str) -> Backbone:
    with torch.device("meta"):
        return vz.create_backbone(name).eval().requires_grad_(False)


def _check_keys(model: Backbone, timm_name: str) -> None:
    with torch.device("meta"):
        reference = timm.create_model(timm_name, num_classes=0)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, reference)]
    assert shapes[0] == shapes[1]


def _check_features(model: Backbone, info: BackboneInfo, batch: int, device: str) -> None:
    x = torch.zeros(batch, model.in_chans, *model.image_size, device=device)
    with torch.no_grad():
        features = model(x)
    h, w = features.grid.shape[2:]
    assert features.pooled.shape == (batch, info.pooled_dim)
    assert features.grid.shape[:2] == (batch, info.grid_dim)
    assert features.prefix.shape == (batch, info.prefix_tokens, info.grid_dim)
    assert h == pytest.approx(model.image_size[0] / info.stride, rel=0.3)
    assert w == pytest.approx(model.image_size[1] / info.stride, rel=0.3)


def _check_pyramid(model: Backbone, info: BackboneInfo, device: str) -> None:
    if "pyramid" not in info.capabilities:
        assert info.pyramid == ()
        with pytest.raises(ValueError, match="does not declare the capability 'pyramid'"):
            model.pyramid(torch.zeros(1, model.in_chans, *model.image_size, device=device))
        return
    with torch.no_grad():
        maps = model.pyramid(torch.zeros(1, model.in_chans, *model.image_size, device=device))
    assert len(maps) == len(info.pyramid) > 0
    assert [m.shape[1] for m in maps] == [level.channels for level in info.pyramid]
    strides = [level.stride for level in info.pyramid]
    assert strides == sorted(strides)
    for m, level in zip(maps, info.pyramid, strict=True):
        assert m.shape[2] == pytest.approx(model.image_size[0] / level.stride, rel=0.3)
        assert m.shape[3] == pytest.approx(model.image_size[1] / level.stride, rel=0.3)


def _check_info(model: Backbone, info: BackboneInfo) -> None:
    assert info.image_size == model.image_size == model.preprocess.image_size == info.preprocess.image_size
    assert info.capabilities <= set(CAPABILITIES)
    assert info.capabilities == model.capabilities
    assert info.params == sum(p.numel() for p in model.parameters()) > 0
    assert info.gmacs > 0
    assert info.embed_dim == model.num_features
    assert info.family
    assert info.paper
    assert info.licence
    assert model.num_classes == 0
    assert model.head_keys() == set()


# All native names, on the meta device; in the fast suite the smallest of each flavour.


def _flavour(name: str) -> tuple[str, tuple[int, int]]:
    """A name without its size, patch, window and resolution; and the rank of its size, then of its resolution."""
    sizes = re.findall("|".join(SIZES), name)
    bare = re.sub(rf"{'|'.join(SIZES)}|patch\d+|window[\dto]+|\d{{2,}}(to\d+)?", "", name)
    pixels = re.search(r"_(\d+)$", name)
    return bare.strip("_"), (SIZES.index(sizes[0]) if sizes else 0, int(pixels[1]) if pixels else 1024)


def _smallest_of_each_flavour() -> set[str]:
    best: dict[str, str] = {}
    for name in NATIVE:
        flavour, rank = _flavour(name)
        if flavour not in best or rank < _flavour(best[flavour])[1]:
            best[flavour] = name
    return set(best.values())


FAST = _smallest_of_each_flavour()


@pytest.mark.long
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NATIVE])
def test_native_contract(name: str) -> None:
    model, info = _meta(name), vz.backbone_info(name)
    assert model.name == info.name == name
    assert info == measure_backbone(name), "run `python -m visionzoo.backbones`"
    if timm.is_model(name):
        _check_keys(model, name)
    _check_info(model, info)
    _check_features(model, info, 2, "meta")
    _check_pyramid(model, info, "meta")
    assert model.state_dict()[model.stem_key].shape[1] == 3
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()} | {
        "cls_token",
        "dist_token",
        "reg_token",
        "pos_embed",
    }
    for capability in CAPABILITIES:
        if capability in info.capabilities:
            require_capability(model, capability, "a test")
        else:
            with pytest.raises(ValueError, match=f"needs the capability '{capability}'"):
                require_capability(model, capability, "a test")


@pytest.mark.parametrize(
    "name", [n if n == "vgg11" else pytest.param(n, marks=pytest.mark.slow) for n in TIMM_FAMILIES]
)
def test_timm_family_at_its_own_size(name: str) -> None:
    """In the fast suite only for VGG, whose run for real is slow; the others run for real below."""
    model, info = _meta(f"timm/{name}"), vz.backbone_info(f"timm/{name}")
    _check_keys(model, name)
    _check_features(model, info, 2, "meta")
    _check_pyramid(model, info, "meta")


# A native backbone of each family, and timm's families, for real.


NANO = [n for n in NATIVE if "_nano_" in n]


def _params(names: list[tuple[str, int | None]], fast: set[str]) -> Any:
    marked = [pytest.param(n, s, id=n, marks=() if n in fast else pytest.mark.slow) for n, s in names]
    return pytest.mark.parametrize(("name", "image_size"), marked)


FAMILIES: list[tuple[str, int | None]] = [(f"timm/{n}", s) for n, s in TIMM_FAMILIES.items()]
REAL: list[tuple[str, int | None]] = [(n, None) for n in NANO] + FAMILIES
ALL_BUT_VGG = {n for n, _ in REAL} - {"timm/vgg11"}
real = _params(REAL, ALL_BUT_VGG)
families = _params(FAMILIES, ALL_BUT_VGG)
few = _params(REAL, {"timm/test_vit", "timm/test_resnet"})


@pytest.mark.long
@real
def test_contract_for_real(name: str, image_size: int | None) -> None:
    model = build(name, image_size)
    _check_info(model, model.info)
    _check_features(model, model.info, 1, "cpu")
    _check_pyramid(model, model.info, "cpu")


@pytest.mark.parametrize("name", NANO)
def test_pooled_is_forward_head_of_forward_features(name: str) -> None:
    model = build(name)
    x = images(model)
    with torch.no_grad():
        assert_close(model(x).pooled, model.forward_head(model.forward_features(x), pre_logits=True))


@real
def test_samples_do_not_mix(name: str, image_size: int | None) -> None:
    """Row i of every output belongs to image i alone."""
    model = build(name, image_size)
    x = images(model)
    with torch.no_grad():
        for batched, alone in zip(model(x), model(x[1:]), strict=True):
            assert_close(batched[1:], alone, tol=1e-4)


@few
def test_deepcopy_is_independent(name: str, image_size: int | None) -> None:
    model = build(name, image_size)
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert twin.info == model.info
    x = images(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x), twin(x), strict=True))
        for p in twin.parameters():
            p.zero_()
        assert not all(torch.equal(a, b) for a, b in zip(model(x), twin(x), strict=True))


@pytest.mark.long
@few
def test_compiles_without_a_graph_break(name: str, image_size: int | None) -> None:
    model = build(name, image_size)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images(model)
    with torch.no_grad():
        for ours, reference in zip(compiled(x), model(x), strict=True):
            assert_close(ours, reference)


@pytest.mark.long
def test_pickle_reaches_a_spawned_process(tmp_path: Path) -> None:
    """Grafted classes are made at run time; a process that never saw them rebuilds them from their recipe."""
    models = [build(n, s) for n, s in (("vit_nano_patch4_32", None), ("timm/test_vit", 64), ("timm/test_resnet", 64))]
    models.append(vz.create_classifier("timm/test_resnet", 3).eval())
    expected = []
    for model in models:
        with torch.no_grad():
            out = model(images(model))
        expected.append(out if isinstance(out, torch.Tensor) else out.pooled)
    inputs = [images(m) for m in models]
    (tmp_path / "in.pkl").write_bytes(pickle.dumps((models, inputs)))
    code = """
import pickle, sys, torch
models, inputs = pickle.load(open(sys.argv[1], "rb"))
with torch.no_grad():
    outs = [m(x) for m, x in zip(models, inputs)]
infos = [m.info for m in models]
pickle.dump(([o if isinstance(o, torch.Tensor) else o.pooled for o in outs], infos), open(sys.argv[2], "wb"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "in.pkl", tmp_path / "out.pkl"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outs, infos = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert infos == [m.info for m in models]
    for ours, reference in zip(outs, expected, strict=True):
        assert_close(ours, reference)


# timm's families against timm itself.


@families
def test_state_dict_keys_equal_timms(name: str, image_size: int | None) -> None:
    model = build(name, image_size)
    assert list(model.state_dict()) == list(timm_twin(model).state_dict())  # which has loaded them, strictly


@families
def test_pooled_equals_timm(name: str, image_size: int | None) -> None:
    model = build(name, image_size)
    twin, x = timm_twin(model), images(model)
    with torch.no_grad():
        reference = twin.forward_head(twin.forward_features(x), pre_logits=True)
        assert reference.std() > 1e-4
        assert_close(model(x).pooled, reference)


@families
def test_pyramid_equals_timm(name: str, image_size: int | None) -> None:
    """The levels of timm's ``forward_intermediates``, which its own ``features_only`` models give too."""
    model = build(name, image_size)
    twin, x = timm_twin(model), images(model)
    with torch.no_grad():
        ours, grid = model.pyramid(x), model(x).grid
        theirs = twin.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    assert grid.shape[2:] == ours[-1].shape[2:]
    assert_close(ours[-1], theirs[-1])
    if len(ours) == len(theirs):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)
    else:
        step = len(theirs) / len(ours)
        for i, a in enumerate(ours, 1):
            assert_close(a, theirs[int(step * i) - 1])
