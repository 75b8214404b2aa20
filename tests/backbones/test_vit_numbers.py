"""Parameters and multiply-adds against the papers; recorded configuration against timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from vit_twins import DEPTH, shallow, timm_options

import visionzoo as vz
from visionzoo.registry import _spec

VITS = [n for n in vz.list_backbones() if not n.startswith("swin") and timm.is_model(n)]

#: name -> millions of parameters with a head for 1000 classes, 1e9 multiply-adds (None: not given), and where that is
#: printed. Figures are as printed; ours have to round to them, or lie within 1.5 %.
PAPERS: dict[str, tuple[str, str | None, str]] = {
    "vit_base_patch16_224": ("86", None, "arXiv 2010.11929, table 1"),
    "vit_large_patch16_224": ("307", None, "arXiv 2010.11929, table 1"),
    "vit_huge_patch14_224": ("632", None, "arXiv 2010.11929, table 1"),
    "vit_base_patch16_384": ("86", "55.4", "arXiv 2103.14030, table 1"),
    "vit_large_patch16_384": ("307", "190.7", "arXiv 2103.14030, table 1"),
    "deit_tiny_patch16_224": ("5.7", "1.3", "arXiv 2102.12122"),
    "deit_small_patch16_224": ("22", "4.6", "arXiv 2103.14030, table 1"),
    "deit_base_patch16_224": ("86", "17.5", "arXiv 2103.14030, table 1"),
    "deit_base_patch16_384": ("86", "55.4", "arXiv 2103.14030, table 1"),
    "deit3_small_patch16_224": ("22.0", "4.6", "arXiv 2204.07118"),
    "deit3_base_patch16_224": ("86.6", "17.5", "arXiv 2204.07118"),
    "deit3_large_patch16_224": ("304.4", "61.6", "arXiv 2204.07118"),
    "deit3_huge_patch14_224": ("632.1", "167.4", "arXiv 2204.07118"),
    "beit_base_patch16_224": ("86", None, "arXiv 2106.08254"),
    "beit_large_patch16_224": ("307", None, "arXiv 2106.08254"),
}
#: The same without a head.
PAPERS_TRUNK: dict[str, tuple[str, str | None, str]] = {
    "vit_small_plus_patch16_dinov3": ("29", None, "arXiv 2508.10104, model card"),
    "vit_base_patch16_dinov3": ("86", None, "arXiv 2508.10104, model card"),
    "vit_large_patch16_dinov3": ("300", None, "arXiv 2508.10104, model card"),
    "vit_huge_plus_patch16_dinov3": ("840", None, "arXiv 2508.10104, model card"),
    "samvit_large_patch16": ("308", None, "arXiv 2304.02643"),
    "samvit_huge_patch16": ("636", None, "arXiv 2304.02643"),
}


def _as_printed(ours: float, printed: str) -> bool:
    half_a_unit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return abs(ours - float(printed)) <= max(half_a_unit, 0.015 * float(printed))


@pytest.mark.parametrize("name", [*PAPERS, *PAPERS_TRUNK])
def test_parameters_and_multiply_adds_as_published(name: str) -> None:
    params, gmacs, where = {**PAPERS, **PAPERS_TRUNK}[name]
    info = vz.backbone_info(name)
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
    assert info.params == sum(p.numel() for p in theirs.parameters())
    head = 1000 * (info.pooled_dim + 1) if name in PAPERS else 0
    assert _as_printed((info.params + head) / 1e6, params), f"{(info.params + head) / 1e6:.2f} M; {where} has {params}"
    if gmacs is not None:
        total = info.gmacs + (1000 * info.pooled_dim) / 1e9
        assert _as_printed(total, gmacs), f"{total:.2f} GMACs; {where} has {gmacs}"


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_224", "vit_small_plus_patch16_dinov3", "beit_base_patch16_224", "samvit_base_patch16_224"],
)
def test_multiply_adds_counted_by_hand(name: str) -> None:
    """Patches, then in each block four projections, two products of attention, and the MLP; nothing else counts."""
    info = vz.backbone_info(name)
    config = shallow(name).config
    d, depth = config.embed_dim, 12
    h, w = (s // config.patch_size for s in info.image_size)
    tokens = h * w + info.prefix_tokens
    hidden = 3 * config.mlp_hidden if config.mlp == "swiglu" else 2 * config.mlp_hidden
    total = h * w * d * 3 * config.patch_size**2
    total += depth * tokens * (4 * d * d + 2 * tokens * d + hidden * d)
    if name.startswith("samvit"):  # each query with one vector for each key row, and one for each key column
        total += depth * tokens * d * (h + w)
    assert info.gmacs * 1e9 == total


@pytest.mark.parametrize("name", VITS)
def test_recorded_preprocessing_and_source_as_timms(name: str) -> None:
    spec, config = _spec(name), timm.get_pretrained_cfg(name)
    assert config is not None
    ours = spec.build.args[1]
    assert (ours.mean, ours.std) == (tuple(config.mean), tuple(config.std))
    assert ours.image_size == tuple(config.input_size[1:])
    assert ours.interpolation == config.interpolation
    assert ours.crop_pct == config.crop_pct
    assert ours.resize_mode == {"center": "shortest", "squash": "squash"}[config.crop_mode]
    assert spec.weights == (f"timm:{name}.{config.tag}" if config.hf_hub_id else None)
    if spec.weights is not None and config.license is not None:
        assert spec.licence == config.license


def _norms_and_activations(model: nn.Module) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    norms = [(k, m.eps) for k, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    acts = []
    for key, module in model.named_modules():
        if key.endswith(".act"):
            x = torch.linspace(-3, 3, 7)
            acts.append((key, str([round(v, 5) for v in module(x).tolist()])))
    return sorted(norms), sorted(acts)


@pytest.mark.parametrize("name", VITS)
def test_eps_and_activations_as_timms(name: str) -> None:
    """What no state dict says, in every norm and every MLP; activations by their values."""
    with torch.device("meta"):
        ours, theirs = shallow(name), timm.create_model(name, num_classes=0, **timm_options(name))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    (norms, acts), (their_norms, their_acts) = _norms_and_activations(ours), _norms_and_activations(theirs)
    assert norms == their_norms
    gates = {k for k, _ in their_acts} - {k for k, _ in acts}  # SwiGLU's is part of our MLP, and always SiLU
    assert acts == [(k, v) for k, v in their_acts if k not in gates]
    assert all(isinstance(theirs.get_submodule(k), nn.SiLU) for k in gates)
    assert len(ours.blocks) == DEPTH
