"""Names, errors and descriptions: what the registry promises whatever is registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visionzoo as vz
from visionzoo import registry
from visionzoo.backbones import BackboneSpec, register_backbone, register_resolver, require_capability
from visionzoo.facts import backbone_facts, info_from_dict, info_to_dict
from visionzoo.types import CAPABILITIES


def _never(**kwargs: Any) -> Any:
    raise AssertionError("built a backbone that was only to be registered")


def _spec(name: str) -> BackboneSpec:
    return BackboneSpec(name=name, family="test", build=_never, paper="none", licence="none")


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SPECS", {})
    monkeypatch.setattr(registry, "_RESOLVERS", {})


def test_names_are_sorted_and_filtered() -> None:
    names = vz.list_backbones()
    assert names == sorted(names)
    assert "vit_nano_patch4_32" in names
    assert vz.list_backbones("vit_nano_*") == ["vit_nano_patch4_32"]
    assert vz.list_backbones("no_such_*") == []
    assert not any(n.startswith("timm/") for n in names)


def test_timm_names_are_listed_when_asked_for() -> None:
    names = vz.list_backbones("timm/resnet1*")
    assert "timm/resnet18" in names
    assert all(n.startswith("timm/resnet1") for n in names)


@pytest.mark.usefixtures("empty_registry")
def test_listing_by_capability_builds_nothing_else() -> None:
    register_backbone(_spec("never_built"))
    assert vz.list_backbones("other_*", capability="tokens") == []


def test_unknown_capability_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown capability 'token'; known are .*tokens"):
        vz.list_backbones(capability="token")
    with pytest.raises(ValueError, match=r"unknown capability 'wings'; known are"):
        require_capability(vz.create_backbone("vit_nano_patch4_32"), "wings", "flying")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("vit_nano_patch4_23", "vit_nano_patch4_32"),
        ("ViT_Nano_Patch4_32", "vit_nano_patch4_32"),
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("timm/resnet5O", "timm/resnet50"),
        ("timm/convnext_atoo", "timm/convnext_atto"),
    ],
)
def test_unknown_name_suggests_near_ones(wrong: str, near: str) -> None:
    for ask in (vz.create_backbone, vz.backbone_info, vz.shared_backbone):
        with pytest.raises(ValueError, match=f"did you mean .*{near}"):
            ask(wrong)


def test_hopeless_name_says_where_names_are() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'zzz'; `visionzoo models` lists them"):
        vz.create_backbone("zzz")


@pytest.mark.usefixtures("empty_registry")
def test_registering_twice_is_an_error() -> None:
    register_backbone(_spec("one"))
    with pytest.raises(ValueError, match="'one' is registered already"):
        register_backbone(_spec("one"))
    register_resolver("x/", _spec, lambda pattern: [])
    with pytest.raises(ValueError, match="'x/' is registered already"):
        register_resolver("x/", _spec, lambda pattern: [])


@pytest.mark.usefixtures("empty_registry")
def test_resolvers_answer_for_their_prefix_only() -> None:
    register_resolver("x/", _spec, lambda pattern: ["x/a"])
    assert vz.list_backbones() == []
    assert vz.list_backbones("x/*") == ["x/a"]
    with pytest.raises(AssertionError, match="only to be registered"):
        vz.create_backbone("x/anything")
    with pytest.raises(ValueError, match=r"'y/anything': none is registered; import visionzoo.backbones first"):
        vz.create_backbone("y/anything")


@pytest.mark.parametrize("size", [0, -3, 2.5, "32", "ab", (32,), (32, 32, 32), (32, 0), (32, 16.0), (None, 3)])
def test_wrong_image_size_is_one_clear_error(size: Any) -> None:
    with pytest.raises(ValueError, match=r"image_size=.*whole number above 0 or a pair"):
        vz.create_backbone("vit_nano_patch4_32", image_size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "in_chans=0"),
        ({"in_chans": 1.5}, "in_chans=1.5"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"drop_path": float("nan")}, "drop_path=nan"),
    ],
)
def test_wrong_options_are_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vz.create_backbone("vit_nano_patch4_32", **options)


def test_image_size_takes_numbers_and_pairs() -> None:
    for size, expected in ((48, (48, 48)), ((48, 32), (48, 32)), ([32, 48], (32, 48)), (None, (32, 32))):
        model = vz.create_backbone("vit_nano_patch4_32", image_size=size)  # type: ignore[arg-type]
        assert model.image_size == model.info.image_size == model.preprocess.image_size == expected


def test_missing_capability_names_job_capability_and_who_has_it() -> None:
    model = vz.create_backbone("timm/test_resnet")
    with pytest.raises(ValueError, match=r"masked pretraining needs the capability 'tokens' .*timm/test_resnet") as e:
        require_capability(model, "tokens", "masked pretraining")
    assert any(name in str(e.value) for name in vz.list_backbones(capability="tokens"))
    require_capability(model, "pyramid", "segmentation")
    with pytest.raises(ValueError, match=r"timm/test_resnet does not declare the capability 'tokens'"):
        model.embed(torch.zeros(1, 3, 160, 160))


def test_listing_by_capability_agrees_with_the_models() -> None:
    names = vz.list_backbones("vit_tiny_*")
    assert names
    for capability in CAPABILITIES:
        have = [n for n in names if capability in vz.backbone_info(n).capabilities]
        assert vz.list_backbones("vit_tiny_*", capability=capability) == have


def test_info_counts_without_allocating() -> None:
    info = vz.backbone_info("timm/resnet50")
    assert info.params == 23_508_032
    assert info.gmacs == pytest.approx(4.09, rel=0.01)
    assert vz.backbone_info("timm/resnet50", image_size=448).gmacs == pytest.approx(4 * info.gmacs, rel=0.01)
    assert vz.backbone_info("vit_base_patch16_224").gmacs == pytest.approx(17.56, rel=0.01)


def test_shipped_facts_are_those_of_the_registered_backbones() -> None:
    """That each of them is right is for the contract sweep."""
    assert list(backbone_facts()) == vz.list_backbones()
    assert all(info_from_dict(info_to_dict(info)) == info for info in backbone_facts().values())
    with pytest.raises(ValueError, match="image_size=0"):
        vz.backbone_info("vit_nano_patch4_32", image_size=0)


def test_info_of_a_model_follows_its_size() -> None:
    small, large = (vz.create_backbone("vit_nano_patch4_32", image_size=s) for s in (32, 64))
    assert large.info.gmacs > 3.9 * small.info.gmacs
    assert small.info == vz.backbone_info("vit_nano_patch4_32")


def test_info_works_for_trainable_and_other_channel_models() -> None:
    """The counter hooks refuse views of trainable leaves under no_grad: class tokens that are expanded (PiT)."""
    assert vz.backbone_info("timm/pit_ti_224").gmacs == pytest.approx(0.7, rel=0.05)
    gray = vz.create_backbone("timm/test_resnet", in_chans=1)
    assert gray.info.params < vz.backbone_info("timm/test_resnet").params


@pytest.mark.parametrize("name", ["resnet50", "resnet50.a1_in1k"])
def test_a_timm_name_without_its_prefix_gets_the_hint(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet50.*'; did you mean timm/resnet50\?"):
        vz.create_backbone(name)


def test_a_backbone_of_ones_own_is_told_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionzoo.backbones.base import Backbone

    class Half(Backbone):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.capabilities = frozenset({"tokens"})

        def split(self, x: Any, image_size: Any) -> Any: ...

    def register(name: str, build: Any) -> None:
        spec = registry.BackboneSpec(name=name, family="x", build=build, paper="", licence="")
        registry.register_backbone(spec)

    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    register("half", Half)
    with pytest.raises(ValueError, match="the backbone Half lacks preprocess") as error:
        vz.create_backbone("half")
    for name in ("pooled_dim", "forward_features", "reset_classifier", "embed (images -> visible tokens; it declares"):
        assert name in str(error.value)
    assert "split" not in str(error.value)
    register("layer", lambda **options: torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="'layer' is a Linear; it must be"):
        vz.create_backbone("layer")
    with pytest.raises(ValueError, match="registered already"):
        register("timm/mine", Half)
