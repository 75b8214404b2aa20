import copy
import pickle

import pytest
import timm
import torch

import visionzoo as vz
from visionzoo.layers.graft import graft
from visionzoo.models.classifier import Classifier

NANO = "vit_nano_patch4_32"


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_siglip_224",
        "vit_medium_patch16_reg4_gap_256",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_keys_are_timms(name):
    with torch.device("meta"):
        ours = vz.create_classifier(name, 10)
        theirs = timm.create_model(name, num_classes=10)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert shapes == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/convnext_atto", "timm/mobilenetv3_small_050"])
def test_timm_classifier_equals_timm(name):
    torch.manual_seed(0)
    ours = vz.create_classifier(name, 7).eval()
    theirs = timm.create_model(name.removeprefix("timm/"), num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_timm_users_find_what_they_know():
    model = vz.create_classifier(NANO, 5).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 65, model.num_features)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.pooled_dim)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier() is model.head
    assert model.architecture["num_classes"] == 3


def test_trunk_parameters_are_all_but_the_head():
    model = vz.create_classifier("deit_tiny_distilled_patch16_224", 2)
    heads = (*model.head.parameters(), *model.head_dist.parameters())
    trunk = {id(p) for p in model.trunk_parameters()}
    assert trunk == {id(p) for p in model.parameters()} - {id(p) for p in heads}
    assert len(trunk) == len(list(model.parameters())) - 4


@pytest.mark.parametrize("name", [NANO, "timm/resnet18"])
def test_copies_and_pickles(name):
    model = vz.create_classifier(name, 5).eval()
    x = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, Classifier)
        assert torch.equal(other(x), model(x))
        assert other.architecture == model.architecture
        assert next(other.parameters()).data_ptr() != next(model.parameters()).data_ptr()


def test_graft_twice_is_once():
    model = vz.create_classifier(NANO, 2)
    kind = type(model)
    assert type(graft(model, Classifier)) is kind


def test_drop_rate_reaches_the_head():
    for name in (NANO, "swin_tiny_patch4_window7_224", "timm/resnet18", "timm/convnext_atto"):
        with torch.device("meta"):
            model = vz.create_classifier(name, 2, drop_rate=0.25)
        assert model.drop_rate == 0.25
        drops = [m.p for n, m in model.named_modules() if n in ("head_drop", "head.drop")]
        assert drops in ([0.25], []), name
        assert drops or name == "timm/resnet18"


def test_another_pooling_keeps_the_norm_where_it_was():
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=4, depth=12).eval()
    theirs.reset_classifier(4, "avg")
    ours = vz.create_classifier("vit_tiny_patch16_224", 4, global_pool="avg").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"image_size": (32, 32, 3)}, "image_size"),
        ({"global_pool": "map"}, "cannot change the pooling"),
        ({"backbone": "vit_nano_patch4_23"}, "did you mean vit_nano_patch4_32"),
    ],
)
def test_bad_arguments_name_the_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        vz.create_classifier(**{"backbone": NANO, "num_classes": 2, **kwargs})
