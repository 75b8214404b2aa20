"""Embeddings equal those of open_clip and transformers, given the same weights."""

import open_clip
import pytest
import timm
import torch
from clip_twins import as_open_clip, assert_same, images, materialise, open_clip_twin, shallow, texts
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import visionzoo as vz
from visionzoo.models.clip.config import CLIP_MODELS, STATISTICS, named_config, text_from_open_clip
from visionzoo.models.clip.create import build_clip
from visionzoo.weights.adapters import LAYOUTS

#: One of each width and kind in the fast suite; their sizes at other resolutions are the same code.
FAST = (
    "ViT-B-32",
    "ViT-B-16-quickgelu",
    "ViT-L-14",
    "ViT-H-14",
    "ViT-g-14",
    "RN50-quickgelu",
    "ViT-B-16-SigLIP",
    "ViT-SO400M-14-SigLIP-384",
    "ViT-B-16-SigLIP2",
    "ViT-B-32-SigLIP2-256",
)
SLOW = (
    "ViT-gopt-16-SigLIP2-256",
    "ViT-L-16-SigLIP2-512",
    "ViT-L-14-336-quickgelu",
    "ViT-SO400M-14-SigLIP",
    "ViT-L-16-SigLIP-256",
)


def compare(name, depth):
    model, other = shallow(name, depth), open_clip_twin(name, depth)
    other.load_state_dict(as_open_clip(model))
    pixels, ids = images(model), texts(model)
    with torch.inference_mode():
        assert_same(model.encode_image(pixels), other.encode_image(pixels))
        assert_same(model.encode_text(ids), other.encode_text(ids))
        for ours, theirs in zip(model(pixels, ids), other(pixels, ids), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_open_clip(name):
    compare(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
def test_open_clip_at_full_depth(name):
    compare(name, None)


@pytest.mark.long
@pytest.mark.parametrize("name", CLIP_MODELS)
def test_the_recorded_configuration_is_open_clips(name):
    """Width, layers, heads, context, vocabulary, activation, eps, statistics: all that a state dict does not say."""
    theirs, ours = open_clip.get_model_config(name), named_config(name)
    vision = theirs["vision_cfg"]
    assert ours.text == text_from_open_clip(theirs)
    assert ours.embed_dim == theirs["embed_dim"]
    assert (ours.loss == "sigmoid") == ("init_logit_bias" in theirs)
    assert ours.preprocess.image_size == (vision["image_size"],) * 2
    with torch.device("meta"):
        trunk = build_clip(ours).visual.trunk
    tag = open_clip.pretrained.get_pretrained_cfg(name, "openai") or open_clip.pretrained.get_pretrained_cfg(
        name, "webli"
    )
    if tag:
        assert (ours.preprocess.mean, ours.preprocess.std) == (tag["mean"], tag["std"])
        assert (ours.preprocess.resize_mode, ours.preprocess.interpolation) == (
            tag["resize_mode"],
            tag["interpolation"],
        )
    if "timm_model_name" in vision:
        assert trunk.name == vision["timm_model_name"]
        with torch.device("meta"):
            peer = timm.create_model(vision["timm_model_name"])
        gelu = getattr(peer.blocks[0].mlp.act, "approximate", "tanh")  # timm's module for tanh has no such attribute
        assert trunk.config.act == {"none": "gelu", "tanh": "gelu_tanh"}[gelu]
        assert trunk.config.eps == 1e-6
    elif isinstance(vision["layers"], int):
        head_width = vision.get("head_width", 64)
        assert trunk.embed_dim == vision["width"]
        assert len(trunk.blocks) == vision["layers"]
        assert trunk.config.num_heads == vision["width"] // head_width
        assert trunk.config.patch_size == vision["patch_size"]
        assert trunk.config.mlp_hidden == int(vision["width"] * vision.get("mlp_ratio", 4.0))
        assert trunk.config.act == ours.text.activation == ("quick_gelu" if theirs.get("quick_gelu") else "gelu")
        assert trunk.config.eps == 1e-5
    assert ours.preprocess.mean == STATISTICS["inception" if ours.loss == "sigmoid" else "openai"][0]


TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 8, "num_attention_heads": 4}


def transformers_pair(kind, act):
    """A small model of transformers, and ours with its weights."""
    if kind == "clip":
        text = {**TEXT, "vocab_size": 120, "max_position_embeddings": 12, "hidden_act": act, "eos_token_id": 119}
        config = CLIPConfig(text_config=text, vision_config={**VISION, "hidden_act": act}, projection_dim=48)
        theirs = CLIPModel(config)
    else:
        text = {**TEXT, "vocab_size": 120, "max_position_embeddings": 12, "hidden_act": act}
        config = SiglipConfig(text_config=text, vision_config={**VISION, "hidden_act": act})
        theirs = SiglipModel(config)
    materialise(theirs)
    for tower in (theirs.text_model, theirs.vision_model):
        ids = tower.embeddings.position_ids
        ids.copy_(torch.arange(ids.shape[1])[None])
    return theirs, act


def ours_like(kind, activation):
    from visionzoo.backbones.vit import VisionTransformer, ViTConfig
    from visionzoo.models.clip.config import TextConfig
    from visionzoo.models.clip.image import ImageTower
    from visionzoo.models.clip.model import Clip
    from visionzoo.models.clip.text import TextTower
    from visionzoo.types import Preprocess
    from visionzoo.weights import install_load_hook

    pre = Preprocess(image_size=(32, 32))
    size = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "act": activation}
    words = {"width": 64, "layers": 2, "heads": 2, "context_length": 12, "vocab_size": 120, "activation": activation}
    if kind == "clip":
        trunk = VisionTransformer(ViTConfig(**size, pre_norm=True, eps=1e-5), pre)
        text, dim, projection, loss = TextConfig(**words), 48, "linear", "softmax"
    else:
        trunk = VisionTransformer(ViTConfig(**size, class_token=False, pool="map"), pre)
        text = TextConfig(**words, causal=False, pool="last", eps=1e-6, projection_bias=True)
        dim, projection, loss = 64, "none", "sigmoid"
    trunk.name = "small"
    model = Clip(ImageTower(trunk, dim, projection), TextTower(text, dim), loss=loss, preprocess=pre)
    model.stated = frozenset({"activation", "preprocess"})
    install_load_hook(model)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "theirs_act", "ours_act"),
    [("clip", "quick_gelu", "quick_gelu"), ("clip", "gelu", "gelu"), ("siglip", "gelu_pytorch_tanh", "gelu_tanh")],
)
def test_transformers(kind, theirs_act, ours_act):
    theirs, _ = transformers_pair(kind, theirs_act)
    model = ours_like(kind, ours_act)
    report = vz.load_weights(model, theirs.state_dict())
    assert report.layout == f"transformers_{kind}"
    assert report.share == 1.0
    pixels, ids = images(model), texts(model)
    with torch.inference_mode():
        out = theirs(input_ids=ids, pixel_values=pixels)
        assert_same(model.encode_image(pixels, normalize=True), out.image_embeds)
        assert_same(model.encode_text(ids, normalize=True), out.text_embeds)
        torch.testing.assert_close(model.get_logits(pixels, ids)[0], out.logits_per_image, rtol=1e-4, atol=1e-4)
    back = LAYOUTS[f"transformers_{kind}"].from_timm(model.state_dict())
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert all(torch.equal(v, back[k]) for k, v in theirs.state_dict().items())
