import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn import functional as F

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.models.clip.config import TEXT_SIZES, TextConfig
from visionzoo.models.clip.text import TextTower

NANO = "vit_nano_patch4_32"
WORDS = {"width": 32, "layers": 3, "heads": 4, "context_length": 16, "vocab_size": 100}


def nano(**options):
    torch.manual_seed(0)
    model = vz.create_clip(**{"backbone": NANO, "text": "nano", "embed_dim": 24, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def tower(**options):
    torch.manual_seed(0)
    model = TextTower(TextConfig(**{**WORDS, **options}), 8).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def ids(lengths, context=16, end=99):
    g = torch.Generator().manual_seed(1)
    out = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, n in zip(out, lengths, strict=True):
        row[: n + 1] = torch.randint(3, 90, (n + 1,), generator=g)
        row[n] = end
    return out


def in_full(model, text, at):
    """All tokens through all blocks, then one of them."""
    config = model.config
    x = model.token_embedding(text) + model.positional_embedding
    for block in model.blocks:
        attn, y = block.attn, block.ln_1(x)
        q, k, v = F.linear(y, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        heads = [z.unflatten(-1, (config.heads, -1)).transpose(1, 2) for z in (q, k, v)]
        logits = heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(config.width // config.heads)
        if config.causal:
            logits = logits + torch.full_like(logits[0, 0], -torch.inf).triu(1)
        x = x + attn.out_proj((logits.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))
        x = x + block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(x))))
    pooled = model.ln_final(x)[torch.arange(len(text)), at]
    projection = model.text_projection
    return projection(pooled) if isinstance(projection, torch.nn.Module) else pooled @ projection


CASES = {
    "causal": ({}, [2, 5, 9]),
    "causal, the longest": ({}, [15, 1]),
    "by the end token's id": ({"pool": "eos", "end_id": 2}, [2, 5, 9]),
    "one block": ({"layers": 1, "activation": "quick_gelu"}, [2, 4]),
    "reading padding": ({"causal": False, "pool": "last", "projection_bias": True}, [2, 5, 9]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_changes_neither_embeddings_nor_gradients(case):
    options, lengths = CASES[case]
    model = tower(**options)
    text = ids(lengths, end=2 if "end_id" in options else 99)
    at = torch.tensor(lengths) if model.config.causal else torch.full((len(lengths),), 15)
    expected = in_full(model, text, at)
    out = model(text)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(out)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((out * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    model.grad_checkpointing = True
    again = torch.autograd.grad((model(text) * weight).sum(), parameters)
    for a, b in zip(again, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_causal_text_is_computed_to_the_longest_prompt_only():
    model, seen = tower(), []
    model.blocks[0].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    model(ids([2, 5]))
    model(ids([2, 5])[:, :10])  # and may be given short
    tower_of_padding = tower(causal=False, pool="last")
    tower_of_padding.blocks[0].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    tower_of_padding(ids([2, 5]))
    assert seen == [6, 6, 16]
    assert model(ids([])).shape == (0, 8)


def test_padding_counts_where_it_is_attended_to():
    model = tower(causal=False, pool="last")
    text = ids([4])
    other = text.clone()
    other[0, 9] = 5
    assert (model(text) - model(other)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"attends to its padding: ids must be \(B, 16\), not \(1, 10\)"):
        model(text[:, :10])


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(1, 17, dtype=torch.long), torch.zeros(2, 16)])
def test_what_is_no_text(wrong):
    with pytest.raises(ValueError, match=r"token ids \(B, 16\)"):
        tower()(wrong)


@pytest.mark.parametrize("options", [{}, {"pool": "eos", "end_id": 2}])
def test_one_graph_under_compile(options):
    model = tower(**options)
    text = ids([2, 5], end=2 if options else 99)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(text), model(text))


def test_answers_as_open_clip():
    model = nano().eval()
    images, text = torch.randn(3, 3, 32, 32), model.tokenizer(["a cat", "", "naïve 東京"])
    image, words, scale = model(images, text)
    assert image.shape == words.shape == (3, 24)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    assert scale == model.logit_scale.exp()
    torch.testing.assert_close(image, F.normalize(model.encode_image(images), dim=1))
    per_image, per_text = model.get_logits(images, text)
    torch.testing.assert_close(per_image, scale * image @ words.T)
    assert torch.equal(per_text, per_image.T)
    assert model(image=images)[1] is None
    assert model(text=text)[0] is None
    model.output_dict = True
    assert list(model(images, text)) == ["image_features", "text_features", "logit_scale"]
    assert next(iter(model.state_dict())) == "logit_scale"


def test_sigmoid_has_a_bias():
    model = nano(loss="sigmoid").eval()
    images, text = torch.randn(2, 3, 32, 32), model.tokenizer(["a", "b"])
    image, words, scale, bias = model(images, text)
    torch.testing.assert_close(model.get_logits(images, text)[0], scale * image @ words.T + bias)
    fresh = vz.create_clip(backbone=NANO, text="nano", loss="sigmoid")
    assert (fresh.logit_scale.exp().item(), fresh.logit_bias.item()) == (pytest.approx(10), -10)
    model.output_dict = True
    assert "logit_bias" in model(images, text)


def test_the_temperature_stays_in_bounds():
    model = nano()
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(expected)
    model = nano(loss="sigmoid")  # SigLIP's has no bounds: B/16 was released at exp(4.765) = 117
    for value in (4.765, -1.0):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(value)


@pytest.mark.long
@pytest.mark.parametrize("backbone", [NANO, "vit_base_patch16_siglip_gap_224", "vit_small_patch16_dinov3"])
def test_patch_dropout(backbone):
    options = {} if backbone == NANO else {"image_size": 64}
    model, seen = nano(backbone=backbone, patch_dropout=0.75, **options), []
    trunk = model.visual.trunk
    trunk.blocks[0].register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    images = torch.randn(2, 3, *model.image_size)
    patches, prefix = (model.image_size[0] // trunk.stride) ** 2, trunk.num_prefix_tokens
    torch.manual_seed(0)
    first = model.train().encode_image(images)
    assert not torch.equal(first, model.encode_image(images))
    torch.manual_seed(0)
    assert torch.equal(first, model.encode_image(images))
    assert seen == [patches // 4 + prefix] * 3
    full = model.eval().encode_image(images)
    assert seen[-1] == patches + prefix
    torch.testing.assert_close(full, model.visual.head(trunk(images).pooled))


def test_patch_dropout_needs_tokens_and_a_rate():
    with pytest.raises(ValueError, match="patch dropout needs the capability 'tokens'"):
        vz.create_clip(backbone="timm/resnet18", patch_dropout=0.5)
    with pytest.raises(ValueError, match=r"patch_dropout=1\.0 must be in \[0, 1\)"):
        vz.create_clip(backbone=NANO, patch_dropout=1.0)


def test_any_backbone_and_a_locked_one():
    """Locked, neither weights nor running statistics move, and the projection learns."""
    model = nano(backbone="timm/resnet18", image_size=64)
    model.lock_image_tower()
    model.train()
    assert not any(m.training for m in model.visual.trunk.modules())
    assert model.text.training
    before = {k: v.clone() for k, v in model.visual.trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    image, text, _ = model(torch.randn(4, 3, 64, 64), model.tokenizer(["a", "b", "c", "d"]))
    (image * text).sum().backward()
    head = model.visual.head.proj.weight.clone()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.visual.trunk.state_dict().items())
    assert not torch.equal(head, model.visual.head.proj.weight)


def test_gradient_checkpointing_changes_nothing():
    model, images = nano(), torch.randn(2, 3, 32, 32)
    text = model.tokenizer(["a cat", "dogs that run"])
    got = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        image, words, _ = model(images, text)
        (image @ words.T).sum().backward()
        got.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert got[0].keys() == got[1].keys() == {k for k, _ in model.named_parameters()} - {"logit_scale"}
    for key in got[0]:
        torch.testing.assert_close(got[1][key], got[0][key])


def test_what_is_never_decayed():
    model = nano(loss="sigmoid")
    listed = model.no_weight_decay() & {n for n, _ in model.named_parameters()}
    tables = {"text.positional_embedding", "visual.trunk.pos_embed", "visual.trunk.cls_token"}
    assert listed == {"logit_scale", "logit_bias", *tables}


def test_a_bundle_rebuilds_the_model(tmp_path):
    options = {"context_length": 20, "loss": "sigmoid", "image_size": (16, 32), "in_chans": 1, "text_layers": 1}
    model = nano(**options, activation="quick_gelu", patch_dropout=0.5).eval()
    spec = replace(model.preprocess, mean=(0.3,), std=(0.2,))
    architecture = json.loads(json.dumps(model.architecture))
    save_bundle(model, ModelConfig(task="clip", architecture=architecture, preprocess=spec), tmp_path)
    again, _ = load_bundle(tmp_path)
    images, text = torch.randn(2, 1, 16, 32), model.tokenizer(["a", "b"])
    assert text.shape == (2, 20)
    for a, b in zip(model(images, text), again(images, text), strict=True):
        assert torch.equal(a, b)
    assert (again.preprocess, again.activation, again.visual.patch_dropout) == (spec, "quick_gelu", 0.5)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_folder_in_place_of_a_name(tmp_path, kind):
    model = nano(context_length=20, activation="quick_gelu").eval()
    save_bundle(model, ModelConfig(task="clip", architecture=model.architecture, preprocess=model.preprocess), tmp_path)
    again = vz.create_clip(kind(tmp_path)).eval()
    images, text = torch.randn(2, 3, 32, 32), model.tokenizer(["a", "b"])
    for a, b in zip(model(images, text), again(images, text), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="is a folder with weights of its own; leave weights=x out"):
        vz.create_clip(kind(tmp_path), weights="x")
    with pytest.raises(ValueError, match="unknown CLIP 'nowhere'"):
        vz.create_clip("nowhere")


@pytest.mark.parametrize("size", TEXT_SIZES)
def test_text_sizes(size):
    with torch.device("meta"):
        model = vz.create_clip(backbone=NANO, text=size)
    assert model.embed_dim == model.config.width == TEXT_SIZES[size]["width"]
    assert (model.context_length, model.vocab_size) == (77, 49408)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes a name or a backbone"),
        ({"name": "ViT-B-32", "backbone": NANO}, "takes a name or a backbone"),
        ({"name": "ViT-B-23"}, "did you mean ViT-B-32"),
        ({"name": "ViT-B-32", "embed_dim": 3, "text": "tiny"}, "ViT-B-32 fixes embed_dim, text; leave them out"),
        ({"backbone": NANO, "text": "giant"}, "text='giant' must be one of nano"),
        ({"backbone": NANO, "text_heads": 7}, "width a multiple of the heads"),
        ({"backbone": NANO, "loss": "triplet"}, "loss='triplet' must be one of softmax"),
        ({"backbone": NANO, "embed_dim": 0}, "embed_dim=0"),
        ({"backbone": NANO, "context_length": 2}, "context_length=2 must be at least 3"),
        ({"backbone": NANO, "activation": "relu"}, "activation='relu' must be one of gelu"),
        ({"backbone": "vit_nino"}, "unknown backbone"),
    ],
)
def test_bad_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        vz.create_clip(**arguments)


def test_openais_spelling_of_names():
    with torch.device("meta"):
        assert vz.create_clip("vit-b/32").visual.trunk.name == "vit_base_patch32_clip_224"


@pytest.mark.parametrize(
    ("name", "unlocked"),
    [
        *((name, n) for name in ("vit_tiny_patch16_224", "timm/resnet18") for n in (0, 1, 3)),
        *(pytest.param("swin_tiny_patch4_window7_224", n, marks=pytest.mark.slow) for n in (0, 1)),
        ("swin_tiny_patch4_window7_224", 3),
    ],
)
def test_the_image_tower_is_locked_as_open_clip_locks_it(name, unlocked):
    theirs = TimmModel(name.removeprefix("timm/"), 32, proj="linear")
    ours = nano(backbone=name, image_size=64)
    for tower in (theirs, ours.visual):
        tower.train()
    theirs.lock(unlocked_groups=unlocked, freeze_bn_stats=True)
    ours.lock_image_tower(unlocked_groups=unlocked, freeze_bn_stats=True)
    learns = {n: p.requires_grad for n, p in theirs.trunk.named_parameters()}
    own = {n: p.requires_grad for n, p in ours.visual.trunk.named_parameters()}
    assert {n: own[n] for n in learns} == learns  # its frozen norms have no parameters
    assert not any(own[n] for n in set(own) - set(learns))
    assert all(p.requires_grad for p in ours.visual.head.parameters())
    if name == "timm/resnet18":  # open_clip puts frozen ones in a class of their own
        ours.train()
        frozen = {n for n, m in theirs.trunk.named_modules() if type(m).__name__ == "FrozenBatchNorm2d"}
        still = {n for n, m in ours.visual.trunk.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.training}
        assert still == frozen


def test_more_groups_than_there_are():
    with pytest.raises(ValueError, match="unlocked_groups=99 must be from 0 to"):
        nano().lock_image_tower(99)
    with pytest.raises(ValueError, match="unlocked_layers=-1 must be at least 0"):
        nano().lock_text_tower(-1)


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 9])
def test_the_text_tower_is_locked_as_open_clip_locks_it(unlocked):
    ours = nano(text_layers=3)
    theirs = TextTransformer(width=128, layers=3, heads=4, output_dim=128)
    ours.lock_text_tower(unlocked_layers=unlocked, freeze_layer_norm=True)
    theirs.lock(unlocked_layers=unlocked)
    learns = {n: p.requires_grad for n, p in theirs.named_parameters()}
    assert {n: p.requires_grad for n, p in ours.text.named_parameters()} == learns
    assert ours.logit_scale.requires_grad
    assert all(p.requires_grad for p in ours.visual.parameters() if p.ndim > 1)
