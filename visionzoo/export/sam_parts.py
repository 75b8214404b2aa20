"""SAM as two graphs: an encoder that sees a picture once, and a decoder that answers prompts about it.

Legend: B images, N prompts, P points of each, C width, (H, W) the model's input, (h, w) embedding grid, (H', W') the
resized picture, K = 4 masks: the one of a clear prompt, then the three of an ambiguous one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from visionzoo.export.feeds import BATCHES
from visionzoo.export.parts import Feed, GraphPart, Plan, Port
from visionzoo.inference.device import as_input
from visionzoo.inference.sam_transform import fitted_size, resize_picture
from visionzoo.models.sam import Sam
from visionzoo.models.sam.prompts import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, IGNORED, NOT_A_POINT, TOP_LEFT, Prompts

#: What the labels of points mean, for people.
LABELS = (
    f"{FOREGROUND} on the object, {BACKGROUND} beside it, {TOP_LEFT} and {BOTTOM_RIGHT} the upper left and lower right "
    f"corner of a box, {NOT_A_POINT} once (at 0, 0) after points without a box, {IGNORED} padding"
)


class SamEncoderGraph(nn.Module):
    """Pictures (B, 3, H, W) uint8 and their sizes (B, 2) int64 -> embeddings (B, C, h, w).

    A picture lies at the upper left; what is right of and below its size (H', W') does not matter.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("mean", sam.pixel_mean)
        self.register_buffer("std", sam.pixel_std)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """As the class says."""
        rows, cols = torch.arange(images.shape[2]), torch.arange(images.shape[3])
        inside = (rows < sizes[:, :1]).unsqueeze(2) & (cols < sizes[:, 1:]).unsqueeze(1)
        pixels = (images.float() - self.mean) / self.std
        return self.sam.encode(as_input(torch.where(inside.unsqueeze(1), pixels, 0.0), self.sam)).float()


class SamDecoderGraph(nn.Module):
    """Embeddings and prompts -> masks (N, K, 4 h, 4 w) as logits, and scores (N, K)."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self, embeddings: Tensor, image_index: Tensor, points: Tensor, labels: Tensor, masks: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            embeddings: (B, C, h, w).
            image_index: (N,) int64, the image that each prompt is about.
            points: (N, P, 2), (x, y) in pixels of the resized picture.
            labels: (N, P) int64, see :data:`LABELS`.
            masks: (N, 1, 4 h, 4 w), logits of an earlier answer.
            has_mask: (N,) bool, whether they count.
        """
        decoder, encoder = self.sam.mask_decoder, self.sam.prompt_encoder
        tokens = encoder.encode(Prompts(points, labels, masks, has_mask))
        cells = decoder.cells(embeddings[image_index], encoder.get_dense_pe(), tokens.dense)
        decoded = decoder.decode(cells, self.sam.embedding_size, tokens.sparse, tokens.valid)
        return decoder.masks(decoded, None).float(), decoder.scores(decoded, None).float()


def sam_plan(sam: Sam, name: str) -> Plan:
    """Encoder and decoder of a SAM; text prompts stay behind."""
    sam = sam.float().eval()
    (height, width), (h, w), (mh, mw) = sam.image_size, sam.embedding_size, sam.mask_size
    c, k = sam.decoder_dim, sam.mask_decoder.num_mask_tokens
    encoder = GraphPart(
        name="encoder",
        module=SamEncoderGraph(sam).eval(),
        inputs=(
            Port("images", "uint8", ("batch", 3, height, width), "pixels, RGB, in 0..255, resized, at the upper left"),
            Port("sizes", "int64", ("batch", 2), "(height, width) of the resized picture within it"),
        ),
        outputs=(Port("embeddings", "float32", ("batch", c, h, w), "of the picture, for the decoder"),),
        feeds=_encoder_feeds(sam),
    )
    decoder = GraphPart(
        name="decoder",
        module=SamDecoderGraph(sam).eval(),
        inputs=(
            Port("embeddings", "float32", ("batch", c, h, w), "from the encoder"),
            Port("image_index", "int64", ("prompts",), "in 0..batch-1, the image that each prompt is about"),
            Port("point_coords", "float32", ("prompts", "points", 2), "(x, y) in pixels of the resized picture"),
            Port("point_labels", "int64", ("prompts", "points"), LABELS),
            Port("mask_input", "float32", ("prompts", 1, mh, mw), "logits of an earlier answer, or zeros"),
            Port("has_mask_input", "bool", ("prompts",), "whether the mask counts"),
        ),
        outputs=(
            Port("low_res_masks", "float32", ("prompts", k, mh, mw), "logits, above 0 on the object: that of a clear "
                 "prompt, then three of an ambiguous one"),
            Port("iou_predictions", "float32", ("prompts", k), "predicted IoU of each mask with the object"),
        ),
        feeds=_decoder_feeds(sam),
    )  # fmt: skip
    facts = {
        "image_size": list(sam.image_size),
        "embedding_size": list(sam.embedding_size),
        "mask_size": list(sam.mask_size),
        "decoder_dim": c,
        "mask_threshold": sam.mask_threshold,
        "ambiguous": sam.ambiguous,
    }
    return Plan(
        kind="sam", name=name, backbone=sam.backbone.name, parts=(encoder, decoder), preprocess=sam.preprocess,
        facts=facts,
    )  # fmt: skip


def resized_pixels(picture: Image.Image, image_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """A picture as the encoder takes it: (3, H, W) uint8, zeros beside it, and its size (H', W')."""
    size = fitted_size((picture.height, picture.width), image_size)
    pixels = torch.zeros(3, *image_size, dtype=torch.uint8)
    pixels[:, : size[0], : size[1]] = torch.from_numpy(resize_picture(picture, size)).permute(2, 0, 1)
    return pixels, size


def _encoder_feeds(sam: Sam) -> Any:
    def feeds(images: Sequence[Image.Image]) -> Iterator[Feed]:
        for i, batch in enumerate(BATCHES):
            yield Feed(
                "pictures of any size", batch, _batch(sam, [images[(i + k) % len(images)] for k in range(batch)])
            )

    return feeds


def _batch(sam: Sam, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    pixels, sizes = zip(*(resized_pixels(image, sam.image_size) for image in images), strict=True)
    return torch.stack(pixels), torch.tensor(sizes)


def _decoder_feeds(sam: Sam) -> Any:
    def feeds(images: Sequence[Image.Image]) -> Iterator[Feed]:
        pixels, sizes = _batch(sam, [images[0], images[len(images) // 2]])
        with torch.inference_mode():
            embeddings = SamEncoderGraph(sam)(pixels, sizes)
        height, width = (int(n) for n in sizes.min(0).values)
        points = torch.tensor([[0.3, 0.4], [0.6, 0.5], [0.8, 0.9]]) * torch.tensor([width, height])
        box = torch.tensor([0.2, 0.25, 0.75, 0.8]) * torch.tensor([width, height, width, height])
        none = torch.zeros(3, 1, *sam.mask_size)
        no, index = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 1, 0])
        click = Prompts.of(points[:, None], torch.tensor([[1], [1], [0]]))
        boxed = Prompts.of(points.expand(3, 3, 2), torch.tensor([[1, 0, 1]] * 3), box.expand(3, 4))
        yield Feed("clicks", 3, (embeddings, index, click.points, click.labels, none, no))
        yield Feed("clicks and boxes", 3, (embeddings, index, boxed.points, boxed.labels, none, no))
        with torch.inference_mode():
            first = SamDecoderGraph(sam)(embeddings, index, click.points, click.labels, none, no)[0][:, :1]
        yes = torch.tensor([True, False, True])
        yield Feed("clicks and masks", 3, (embeddings, index, click.points, click.labels, first, yes))
        one = (embeddings[:1], index[:1], click.points[:1], click.labels[:1], none[:1], no[:1])
        yield Feed("one click", 1, one)

    return feeds
