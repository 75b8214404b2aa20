"""Meta's SAM at two blocks' depth and its full width, and ours with the same perturbed weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from PIL import Image
from segment_anything import modeling
from torch import nn

import visionzoo.backbones  # noqa: F401  fills the registry
from visionzoo.models.sam import Sam, create_sam
from visionzoo.models.sam.build import assemble
from visionzoo.registry import _spec

SIZE, DEPTH = 256, 2
NANO = "vit_nano_patch4_32"


def shake(model: nn.Module, scale: float, seed: int = 0) -> None:
    """Give every parameter and buffer a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)


@cache
def meta_sam(size: int = SIZE) -> modeling.Sam:
    grid = size // 16
    torch.manual_seed(0)
    encoder = modeling.ImageEncoderViT(
        depth=DEPTH,
        embed_dim=768,
        img_size=size,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=12,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=14,
    )
    prompts = modeling.PromptEncoder(256, (grid, grid), (size, size), 16)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
    shake(encoder, 0.02)
    shake(prompts, 0.1)
    shake(decoder, 0.05)
    return modeling.Sam(encoder, prompts, decoder).eval()


def shallow_sam(size: int | tuple[int, int] = SIZE) -> Sam:
    """Ours with random weights."""
    build = _spec("samvit_base_patch16").build
    config = replace(build.args[0], depth=DEPTH, global_blocks=(DEPTH - 1,))
    pair = size if isinstance(size, tuple) else (size, size)
    trunk = build.func(config, build.args[1], image_size=pair, in_chans=3, drop_path=0.0)
    trunk.name = "samvit_base_patch16"
    return assemble(trunk).eval()


@cache
def our_sam(size: int = SIZE) -> Sam:
    """Ours with the weights of :func:`meta_sam`."""
    model = shallow_sam(size)
    model.load_state_dict(meta_sam(size).state_dict())
    return model


def nano_sam(seed: int = 0, **options) -> Sam:
    """A small model whose masks differ from click to click."""
    torch.manual_seed(seed)
    model = create_sam(NANO, **{"image_size": 64, **options})
    shake(model, 0.05, seed)
    return model.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours: (height, width, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
