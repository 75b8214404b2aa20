"""Segment Anything against Meta's own code, and what is ours: batches of mixed prompts, other backbones, texts."""

import copy
import pickle

import pytest
import torch
from sam_twins import DEPTH, NANO, SIZE, meta_sam, nano_sam, our_sam, picture, shallow_sam
from transformers import SamConfig, SamModel

import visionzoo as vz
from visionzoo.models.bundle import ModelConfig, load_bundle, save_bundle
from visionzoo.models.sam import Prompts, SamPreprocess
from visionzoo.models.sam.prompts import IGNORED, join
from visionzoo.types import Preprocess
from visionzoo.weights.adapters import LAYOUTS

TOLERANCE = 1e-4


def prompts_of(n, points, box, mask, seed=0, size=SIZE, mask_size=SIZE // 4):
    """Meta's arguments: points with labels, boxes, masks; None for what is not asked for."""
    g = torch.Generator().manual_seed(seed)
    coords = (torch.rand(n, points, 2, generator=g) * size, torch.randint(0, 2, (n, points), generator=g))
    corners = torch.rand(n, 2, 2, generator=g).sort(dim=1).values.flatten(1) * size
    masks = 3 * torch.randn(n, 1, mask_size, mask_size, generator=g)
    return coords if points else None, corners if box else None, masks if mask else None


@pytest.fixture(scope="module")
def embedding():
    return torch.randn(1, 256, SIZE // 16, SIZE // 16, generator=torch.Generator().manual_seed(5))


def close(a, b, tolerance=TOLERANCE):
    assert a.shape == b.shape
    assert a.numel() == 0 or (a - b).abs().max() <= tolerance * max(1.0, b.abs().max())


@torch.no_grad()
def test_image_embedding_is_metas():
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    close(our_sam().encode(images), meta_sam().image_encoder(images))


# 1 and 2 points take the folded way, 20 do not.
KINDS = [(p, b, m) for p in (0, 1, 2, 20) for b in (False, True) for m in (False, True)]


@pytest.mark.parametrize(("points", "box", "mask"), KINDS)
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_masks_and_scores_are_metas(points, box, mask, multimask, embedding):
    meta, ours = meta_sam(), our_sam()
    given = prompts_of(3 if points or box or mask else 1, points, box, mask)
    sparse, dense = meta.prompt_encoder(*given)
    masks, scores = meta.mask_decoder(embedding, meta.prompt_encoder.get_dense_pe(), sparse, dense, multimask)
    # Meta's calls on our model, our own call, and our own call with what an image's prompts share at hand.
    parts = ours.prompt_encoder(*given)
    close(parts[0], sparse)
    close(parts[1], dense)
    prompts = Prompts.of(*(given[0] or (None, None)), *given[1:])
    answers = [
        ours.mask_decoder(embedding, ours.prompt_encoder.get_dense_pe(), *parts, multimask),
        ours.decode(embedding, prompts, multimask),
        ours.ask(ours.context(embedding), prompts, multimask),
    ]
    for got in answers:
        close(got[0], masks)
        close(got[1], scores)
    assert masks.std() > 0.1


@torch.no_grad()
def test_all_four_masks_are_the_one_and_the_three(embedding):
    model = our_sam()
    prompts = Prompts.of(*prompts_of(2, 1, False, False)[0])
    every, one, three = (model.decode(embedding, prompts, kind) for kind in (None, False, True))
    torch.testing.assert_close(every.masks, torch.cat((one.masks, three.masks), dim=1))
    torch.testing.assert_close(every.scores, torch.cat((one.scores, three.scores), dim=1))


@torch.no_grad()
def test_metas_call_on_a_list_of_images():
    items = []
    for i, (height, width) in enumerate(((SIZE, SIZE), (150, SIZE), (SIZE, 99))):
        coords, boxes, masks = prompts_of(i + 1, i, i != 1, i == 2, seed=i, size=90)
        item = {"image": torch.from_numpy(picture(height, width, i).copy()).permute(2, 0, 1).float()}
        item |= {"original_size": (height * 2, width * 2)}
        item |= {} if coords is None else {"point_coords": coords[0], "point_labels": coords[1]}
        item |= {} if boxes is None else {"boxes": boxes}
        items.append(item | ({} if masks is None else {"mask_inputs": masks}))
    for ours, theirs in zip(our_sam()(items, True), meta_sam()(items, True), strict=True):
        assert ours.keys() == theirs.keys()
        close(ours["low_res_logits"], theirs["low_res_logits"])
        close(ours["iou_predictions"], theirs["iou_predictions"])
        assert ours["masks"].shape == theirs["masks"].shape
        assert (ours["masks"] != theirs["masks"]).float().mean() < 1e-4


@torch.no_grad()
def test_parity_with_transformers(embedding):
    vision = {"image_size": SIZE, "num_hidden_layers": DEPTH, "global_attn_indexes": [1], "mlp_dim": 3072}
    # Meta's decoder has the default eps.
    config = SamConfig(
        vision_config=vision, prompt_encoder_config={"image_size": SIZE}, mask_decoder_config={"layer_norm_eps": 1e-5}
    )
    twin, model = SamModel(config).eval(), our_sam()
    twin.load_state_dict(LAYOUTS["transformers_sam"].from_timm(model.state_dict()))
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    close(model.encode(images), twin.get_image_embeddings(images))
    (points, labels), boxes, _ = prompts_of(3, 2, True, False)
    # transformers adds Meta's padding point to points that come with a box too; here both get none.
    for kind in ({"input_points": points[None], "input_labels": labels[None]}, {"input_boxes": boxes[None]}):
        theirs = twin(image_embeddings=embedding, **kind)
        prompts = Prompts.of(points, labels) if "input_points" in kind else Prompts.of(boxes=boxes)
        ours = model.decode(embedding, prompts)
        close(ours.masks, theirs.pred_masks[0])
        close(ours.scores, theirs.iou_scores[0])


# Batches of mixed prompts.


def mixed(model):
    """Prompts of every kind and mix, about three images."""
    h, _ = model.mask_size
    width = 5
    found = []
    for i, (points, box, mask, text) in enumerate(
        [
            (1, 0, 0, 0),
            (3, 0, 0, 0),
            (0, 1, 0, 0),
            (2, 1, 1, 0),
            (0, 0, 0, 1),
            (0, 0, 0, 0),
            (1, 0, 1, 1),
            (25, 0, 0, 0),
        ]
    ):
        n = 2 if points or box or mask or text else 1
        coords, boxes, masks = prompts_of(n, points, box, mask, seed=i, size=64, mask_size=h)
        texts = torch.randn(n, width, generator=torch.Generator().manual_seed(i)) if text else None
        found.append(Prompts.of(*(coords or (None, None)), boxes, masks, texts, image_index=i % 3))
    return found


@torch.no_grad()
def test_a_batch_of_mixed_prompts_is_the_same_as_one_by_one():
    model = nano_sam(text_dim=5)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    embeddings = model.encode(images)
    parts = mixed(model)
    together = model.decode(embeddings, join(parts), None)
    place = 0
    for i, part in enumerate(parts):
        for row in range(part.number):
            single = part.select(slice(row, row + 1))._replace(image_index=None)
            alone = model.decode(embeddings[i % 3 : i % 3 + 1], single, None)
            close(together.masks[place : place + 1], alone.masks, 1e-5)
            close(together.scores[place : place + 1], alone.scores, 1e-5)
            place += 1
    assert place == together.masks.shape[0]
    assert together.masks.std(0).min() > 0


def test_padding_has_no_gradient_and_all_kinds_train():
    model = nano_sam(text_dim=5).train()
    embeddings = model.encode(torch.randn(3, 3, 64, 64))
    prompts = join(mixed(model))
    prompts = prompts._replace(points=prompts.points.requires_grad_(), masks=prompts.masks.requires_grad_())
    output = model.decode(embeddings, prompts, None)
    (output.masks.square().mean() + output.scores.square().mean()).backward()
    padding = prompts.labels == IGNORED
    assert padding.any()
    assert (prompts.points.grad[padding] == 0).all()
    assert (prompts.points.grad[prompts.labels >= 0] != 0).any()
    assert (prompts.masks.grad[~prompts.has_mask] == 0).all()
    assert (prompts.masks.grad[prompts.has_mask] != 0).any()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@torch.no_grad()
def test_text_prompts_change_the_answer():
    model = nano_sam(text_dim=5)
    embedding = model.encode(torch.randn(1, 3, 64, 64))
    a, b = (model.decode(embedding, Prompts.of(text=t)).masks for t in (torch.zeros(1, 5), torch.ones(1, 5)))
    assert (a - b).abs().max() > 0.01
    with pytest.raises(ValueError, match="width 4 do not fit; this model takes 5"):
        model.decode(embedding, Prompts.of(text=torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="takes no text prompts"):
        nano_sam().decode(embedding, Prompts.of(text=torch.zeros(1, 5)))


# Other backbones and sizes.

BACKBONES = {
    NANO: ({"image_size": 64}, (16, 16)),
    "vit_tiny_patch16_224": ({"image_size": (64, 96)}, (4, 6)),
    "vit_small_patch32_224": ({"image_size": 64}, (4, 4)),
    "swin_nano_patch2_window4_32": ({"image_size": (32, 64)}, (4, 8)),
    "swin_tiny_patch4_window7_224": ({"image_size": (64, 96), "embedding_stride": 8}, (8, 12)),
    "timm/resnet18": ({"image_size": (96, 64)}, (6, 4)),
    "timm/convnext_atto": ({"image_size": 64}, (4, 4)),
    "vit_small_patch14_dinov2": ({"image_size": (56, 84), "conv_stem": True}, (4, 6)),
    "timm/resnet26": ({"image_size": (96, 64), "conv_stem": True}, (6, 4)),
}


def test_a_stem_sees_where_in_a_cell_an_edge_lies():
    """Written out: what the neck adds up, and that pixels matter which the backbone is not shown."""
    torch.manual_seed(0)
    model = vz.create_sam(NANO, image_size=64, embedding_stride=8, decoder_dim=32, conv_stem=True).eval()
    images = torch.randn(2, 3, 64, 64)
    encoder = model.image_encoder
    neck = encoder.neck
    with torch.no_grad():
        grid = encoder.trunk(images).grid
        fitted = torch.nn.functional.interpolate(
            neck.lateral[0](torch.nn.functional.interpolate(grid, size=(8, 8), mode="bilinear", antialias=True)),
            size=(8, 8), mode="bilinear",
        )  # fmt: skip
        torch.testing.assert_close(model.encode(images), neck.mix(neck.stem(images) + fitted))
        blank = [torch.zeros_like(m) for m in encoder.maps(images)]
        moved = torch.roll(images, 1, dims=-1)
        assert not torch.allclose(encoder.join(blank, images), encoder.join(blank, moved), atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_any_backbone_segments_and_trains(backbone, tmp_path):
    options, grid = BACKBONES[backbone]
    torch.manual_seed(0)
    model = vz.create_sam(backbone, **options)
    assert model.embedding_size == grid
    h, w = model.image_size
    images = torch.randn(2, 3, h, w)
    masks = torch.randn(2, 1, *model.mask_size)
    prompts = Prompts.of(torch.rand(2, 1, 2) * 32, torch.ones(2, 1), torch.rand(2, 4), masks)._replace(
        image_index=torch.tensor([0, 1]), has_mask=torch.tensor([True, False])
    )
    output = model.decode(model.encode(images), prompts, None)
    assert output.masks.shape == (2, 4, 4 * grid[0], 4 * grid[1])
    (output.masks.square().mean() + output.scores.square().mean()).backward()
    unused = {k for k, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == set()
    model.eval()
    config = ModelConfig(task="segment", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path)
    other, read = load_bundle(tmp_path)
    assert read.preprocess == model.preprocess
    with torch.no_grad():
        assert torch.equal(model.encode(images), other.encode(images))


@pytest.mark.parametrize("size", [(SIZE, SIZE - 64), (SIZE // 2, SIZE // 2)])
@torch.no_grad()
def test_other_sizes_resample_the_position_tables(size):
    model = shallow_sam(size)
    report = vz.load_weights(model, meta_sam().state_dict())
    assert report.layout == "segment_anything"
    assert len(report.resampled) == (2 if size[0] == SIZE else 3)
    small, large = model, our_sam()
    assert small.embedding_size == (size[0] // 16, size[1] // 16)
    masks = small.decode(small.encode(torch.randn(1, 3, *size)), Prompts.of(boxes=torch.tensor([[1.0, 2, 50, 60]])))
    assert masks.masks.shape == (1, 3, size[0] // 4, size[1] // 4)
    assert small.preprocess.image_size == size
    assert large.preprocess.image_size == (SIZE, SIZE)
    # What does not depend on the size is unchanged.
    assert torch.equal(small.mask_decoder.iou_token.weight, large.mask_decoder.iou_token.weight)


def test_encoder_weights_move_in_and_out():
    model = nano_sam()
    trunk = vz.create_backbone(NANO, image_size=64)
    vz.load_weights(trunk, model.state_dict())
    other = vz.create_sam(NANO, image_size=64, backbone_weights=trunk.state_dict())
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, other.state_dict()[f"image_encoder.trunk.{key}"])
    mae = vz.create_mae(NANO, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    from_mae = vz.create_sam(NANO, backbone_weights=mae.state_dict())
    assert torch.equal(from_mae.backbone.blocks[0].attn.qkv.weight, mae.encoder.blocks[0].attn.qkv.weight)


# What Meta's programs and ours read.


def test_preprocess_is_the_spec_and_metas_method():
    model = our_sam()
    image = torch.from_numpy(picture(100, SIZE).copy()).permute(2, 0, 1)[None]
    assert isinstance(model.preprocess, Preprocess)
    torch.testing.assert_close(model.preprocess(image), meta_sam().preprocess(image), rtol=0, atol=1e-6)
    assert model.preprocess.resize_mode == "longest"
    travelled = pickle.loads(pickle.dumps(model.preprocess))
    assert type(travelled) is Preprocess
    assert travelled == model.preprocess == SamPreprocess.of(travelled)
    with pytest.raises(ValueError, match="does not fit this model's 256x256"):
        model.preprocess(torch.zeros(3, 10, SIZE + 1))
    other = nano_sam()
    other.preprocess = Preprocess(image_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert other.pixel_mean.flatten().tolist() == [127.5] * 3
    assert other.preprocess(torch.full((3, 64, 64), 255.0)).unique().tolist() == [2.0]


def test_attributes_of_meta():
    model, meta = our_sam(), meta_sam()
    assert model.image_encoder.img_size == meta.image_encoder.img_size
    for name in ("pixel_mean", "pixel_std"):
        torch.testing.assert_close(getattr(model, name), getattr(meta, name))
    assert (model.mask_threshold, model.image_format, model.device) == (0.0, "RGB", meta.device)
    assert "pixel_mean" not in model.state_dict()
    masks = torch.randn(2, 3, SIZE // 4, SIZE // 4)
    for input_size, original in (((200, SIZE), (200, SIZE)), ((SIZE, 100), (333, 130))):
        ours, theirs = (m.postprocess_masks(masks, input_size, original) for m in (model, meta))
        torch.testing.assert_close(ours, theirs)


def test_copies_autocast_and_low_precision():
    model = nano_sam()
    images, prompts = torch.randn(1, 3, 64, 64), Prompts.of(torch.rand(1, 1, 2) * 64, torch.ones(1, 1))
    with torch.no_grad():
        exact = model.decode(model.encode(images), prompts)
        assert torch.equal(copy.deepcopy(model).decode(model.encode(images), prompts).masks, exact.masks)
        with torch.autocast("cpu", torch.bfloat16):
            low = model.decode(model.encode(images), prompts)
        half = copy.deepcopy(model)
        half.image_encoder.bfloat16()
        mixed_precision = half.decode(half.encode(images), prompts)
    for got in (low, mixed_precision):
        assert (got.masks.float() - exact.masks).abs().mean() < 0.05 * exact.masks.abs().mean()


def test_checkpointing_and_undecayed_parameters():
    model = nano_sam().train()
    images, prompts = torch.randn(1, 3, 64, 64), Prompts.of(torch.rand(1, 1, 2) * 64, torch.ones(1, 1))
    plain = model.decode(model.encode(images), prompts).masks
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(model.decode(model.encode(images), prompts).masks, plain)
    names = {k for k, _ in model.named_parameters()}
    assert {"image_encoder.trunk.pos_embed", "mask_decoder.iou_token.weight"} <= model.no_weight_decay() & names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vz.create_sam("vit_b", image_size=1000), "multiple of 16"),
        (lambda: vz.create_sam("vit_bb"), "unknown backbone"),
        (lambda: vz.create_sam(NANO, image_size=64, embedding_stride=7), "does not divide into cells of 7"),
        (lambda: vz.create_sam(NANO, text_dim=0), "text_dim=0"),
        (lambda: Prompts.of(torch.zeros(1, 2, 2)), "points need labels"),
        (lambda: Prompts.of(torch.zeros(1, 2, 2), torch.ones(1, 3)), r"\(N, P, 2\) and \(N, P\)"),
        (lambda: Prompts.of(torch.zeros(1, 1, 2), torch.full((1, 1), 4)), "labels \\[4\\] must be 1"),
        (lambda: Prompts.of(labels=torch.ones(1, 1)), "labels belong to points"),
        (lambda: Prompts.of(boxes=torch.zeros(2, 5)), "x0, y0, x1, y1"),
        (lambda: Prompts.of(torch.zeros(1, 1, 2), torch.ones(1, 1), torch.zeros(2, 4)), r"\[1, 2\] objects"),
        (lambda: join([]), "no prompts to join"),
        (lambda: nano_sam().decode(torch.zeros(1, 256, 4, 4), Prompts.of()), "are not of this model"),
        (
            lambda: nano_sam().decode(torch.zeros(2, 256, 16, 16), Prompts.of(image_index=2)),
            "image 2 of 2",
        ),
        (
            lambda: nano_sam().decode(torch.zeros(1, 256, 16, 16), Prompts.of(masks=torch.zeros(1, 1, 32, 32))),
            "32x32 does not fit this model, which takes 64x64",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@torch.no_grad()
def test_vit_b_at_1024_is_metas():
    from sam_twins import shake
    from segment_anything import SamPredictor, sam_model_registry

    meta = sam_model_registry["vit_b"]()
    for part in (meta.image_encoder, meta.prompt_encoder, meta.mask_decoder):  # not the pixel statistics
        shake(part, 0.01)
    model = vz.create_sam("vit_b", weights=meta.state_dict()).eval()
    image = picture(683, 1024)
    theirs, ours, mixed_up = SamPredictor(meta), vz.SamPredictor(model), SamPredictor(model)
    for predictor in (theirs, ours, mixed_up):
        predictor.set_image(image)
    close(ours.get_image_embedding(), theirs.get_image_embedding())
    (coords, labels), boxes, _ = prompts_of(1, 2, True, False, size=600)
    arguments = (coords[0].numpy(), labels[0].numpy(), boxes[0].numpy())
    for a, b, c in zip(*(p.predict(*arguments, return_logits=True) for p in (ours, mixed_up, theirs)), strict=True):
        close(torch.from_numpy(a), torch.from_numpy(c))
        close(torch.from_numpy(b), torch.from_numpy(c))
