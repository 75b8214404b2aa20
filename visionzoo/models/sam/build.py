"""Build SAM from a name."""

from __future__ import annotations

from typing import Any

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.models.bundle import load_bundle
from visionzoo.models.sam.encoder import WIDTH, make_encoder
from visionzoo.models.sam.mask_decoder import MaskDecoder
from visionzoo.models.sam.model import Sam
from visionzoo.models.sam.prompt_encoder import PromptEncoder
from visionzoo.weights import install_load_hook, load_weights
from visionzoo.weights.local import local_source

#: Meta's three sizes.
SAM_BACKBONES = {
    "vit_b": "samvit_base_patch16",
    "vit_l": "samvit_large_patch16",
    "vit_h": "samvit_huge_patch16",
}


def create_sam(
    backbone: str | None = None,
    *,
    weights: Any = None,
    backbone_weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    embedding_stride: int | None = None,
    text_dim: int | None = None,
    decoder_dim: int = WIDTH,
    conv_stem: bool = False,
    drop_path: float = 0.0,
    ambiguous: bool = True,
    position_scale: float = 1.0,
) -> Sam:
    """Build a promptable segmentation model.

    Args:
        backbone: ``vit_b``, ``vit_l`` or ``vit_h`` for Meta's models, or any registered backbone, which gets a neck.
            None for ``vit_b``; with embedded weights for theirs, whose configuration then holds for all the rest.
        weights: None for random weights; otherwise a source for :func:`visionzoo.load_weights`, for the whole model.
            Meta's and transformers' checkpoints are understood. ``embedded`` is the one that comes with the package.
        backbone_weights: the same for the image encoder's backbone alone; loaded first.
        image_size: pixels, one number or (height, width), which images are padded to; multiples of
            ``embedding_stride``. None for the backbone's own. Position tables are resampled.
        embedding_stride: pixels per cell of the image embedding; masks come at a quarter of it. None for 16, or the
            coarsest stride of the backbone where that is finer. Meta's models have 16.
        text_dim: width of text embeddings, for a model that also takes text prompts; None for none, as Meta's.
        decoder_dim: width of neck, prompts and mask decoder, a multiple of 16. Meta's have 256; 64 or 128 train several
            times faster on a CPU.
        conv_stem: whether a few convolutions read the pixels beside the backbone, for edges that its patches may blur;
            of backbones that get a neck. That it helps has not been shown yet.
        drop_path: stochastic-depth rate of the encoder's last block.
        ambiguous: whether one click may mean several things (a shirt, or its wearer), so that it has three answers.
            False where it means one, as with cells: training and ``visionzoo masks`` then use the one answer that
            clear prompts have.
        position_scale: factor for the frequencies that tell places apart, drawn or loaded. Meta's are of order one over
            the image, and many small objects want higher ones. A model from scratch hardly begins to learn with higher
            ones: train it on magnified crops first, and raise them then.

    Raises:
        ValueError: for an unknown backbone, a size that does not fit, or unfitting weights.
    """
    weights = local_source(own := weights, "segment")
    if backbone is None and own is not weights:
        model, _ = load_bundle(weights)
        assert isinstance(model, Sam)
        return model.train()
    backbone = backbone or "vit_b"
    if text_dim is not None and text_dim < 1:
        raise ValueError(f"text_dim={text_dim} must be at least 1, or None for a model without text prompts")
    if decoder_dim < 16 or decoder_dim % 16:
        raise ValueError(f"decoder_dim={decoder_dim} must be a multiple of 16, such as 64, 128 or 256")
    known = SAM_BACKBONES.get(backbone)
    trunk = create_backbone(known or backbone, image_size=image_size, drop_path=drop_path, weights=backbone_weights)
    model = assemble(trunk, embedding_stride, text_dim, decoder_dim, conv_stem)
    model.ambiguous = ambiguous
    model.name = f"SAM {backbone}" if known else f"SAM of {backbone}"
    model.architecture = {
        "backbone": backbone,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "embedding_stride": embedding_stride,
        "text_dim": text_dim,
        "decoder_dim": decoder_dim,
        "conv_stem": conv_stem,
        "drop_path": drop_path,
        "ambiguous": ambiguous,
    }
    if weights is not None:
        load_weights(model, weights)
    # Not in the architecture: frequencies are among the weights, and would be raised again.
    model.prompt_encoder.pe_layer.sharpen(position_scale)
    return model


def assemble(
    trunk: Backbone,
    embedding_stride: int | None = None,
    text_dim: int | None = None,
    decoder_dim: int = WIDTH,
    conv_stem: bool = False,
) -> Sam:
    """SAM around a backbone that exists already; arguments as in :func:`create_sam`."""
    encoder = make_encoder(trunk, embedding_stride, decoder_dim, conv_stem)
    stride = encoder.stride
    grid = (trunk.image_size[0] // stride, trunk.image_size[1] // stride)
    prompts = PromptEncoder(decoder_dim, grid, trunk.image_size, text_dim=text_dim)
    model = Sam(encoder, prompts, MaskDecoder(decoder_dim))
    install_load_hook(model)
    return model
