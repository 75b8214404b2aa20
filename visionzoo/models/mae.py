"""Masked autoencoders (arXiv 2111.06377) on any backbone that can encode a subset of its patch tokens.

The keys are ``encoder.*``, the backbone's own, and ``decoder.*``.

Legend: B batch, C channels, (H, W) pixels, p patch size, N patches, n visible ones, P prefix tokens, D encoder width,
E decoder width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from visionzoo.backbones import create_backbone
from visionzoo.backbones.base import Backbone
from visionzoo.layers.attention import Attention, Block
from visionzoo.layers.mlp import Mlp
from visionzoo.layers.position import resample_positions, sincos_2d, stored_grid
from visionzoo.losses.masked import hidden_pixel_loss, masked_pixel_loss
from visionzoo.models.encoder_model import EncoderModel
from visionzoo.models.masking import (
    MaskedOutput,
    Masking,
    Reconstruction,
    check_noise,
    check_ratio,
    draw_noise,
    freeze_pool,
    norm_after_pool,
    random_masking,
    reconstruct,
)
from visionzoo.registry import require_capability
from visionzoo.types import Tokens
from visionzoo.weights import install_load_hook, load_weights

#: The paper's models: the backbone each one pretrains.
MAE_BACKBONES = {
    "mae_vit_base_patch16": "vit_base_patch16_224",
    "mae_vit_large_patch16": "vit_large_patch16_224",
    "mae_vit_huge_patch14": "vit_huge_patch14_224",
}
#: Pixel statistics the paper's models were trained with (ImageNet's).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POSITIONS = ("sincos", "learned")


class MAEDecoder(nn.Module):
    """The light decoder: encoded visible patches -> pixels of all patches (section 3, "MAE decoder").

    Args:
        encoder_dim: D.
        grid_size: (h, w) of the position table.
        patch_values: p * p * C, length of a predicted patch.
        prefix_tokens: P.
        dim: E.
        depth: number of blocks.
        num_heads: of each block.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid_size: tuple[int, int],
        patch_values: int,
        *,
        prefix_tokens: int,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.prefix_tokens = prefix_tokens
        self.grad_checkpointing = False
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        table = sincos_2d(grid_size, dim, prefix_tokens=prefix_tokens).to(self.embed.weight.device)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.Sequential(*(Block(dim, Attention(dim, num_heads), Mlp(dim, 4 * dim)) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pred = nn.Linear(dim, patch_values)

    def forward(self, latent: Tokens, masking: Masking) -> Tensor:
        """Encoded visible tokens -> all patches in raster order, (B, N, p * p * C).

        Args:
            latent: (B, n, D) tokens in the order of ``masking.keep``, with their prefix.
            masking: of the same images.
        """
        x = self._run(self._sequence(latent, masking), len(self.blocks))[:, self.prefix_tokens :]
        x = x.gather(1, masking.place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return self.pred(self.norm(x))

    def hidden(self, latent: Tokens, masking: Masking) -> Tensor:
        """Encoded visible tokens -> the masked patches only, (B, N - n, p * p * C), in the order of ``masking.hidden``.

        The same numbers as :meth:`forward`'s, for less: after the last attention nothing reads the other tokens.
        """
        x = self._run(self._sequence(latent, masking), len(self.blocks) - 1)
        last = cast(Block, self.blocks[-1])
        x = (x + last.attn(last.norm1(x)))[:, self.prefix_tokens + masking.visible :]
        return self.pred(self.norm(x + last.mlp(last.norm2(x))))

    def _sequence(self, latent: Tokens, masking: Masking) -> Tensor:
        """Prefix, visible patches, mask tokens, positions added: (B, P + N, E). Attention does not mind the order."""
        p = self.prefix_tokens
        known = self.embed(torch.cat((latent.prefix, latent.x), dim=1))
        masked = self.mask_token.to(known.dtype).expand(*masking.hidden.shape, -1)
        table = resample_positions(self.pos_embed, latent.grid_size, old_grid=self.grid_size, prefix_tokens=p)[0]
        places = F.pad(masking.order + p, (p, 0))
        places[:, :p] = torch.arange(p, device=places.device)
        return torch.cat((known, masked), dim=1) + F.embedding(places, table)

    def _run(self, x: Tensor, depth: int) -> Tensor:
        """The first ``depth`` blocks."""
        for block in self.blocks[:depth]:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class MAE(EncoderModel):
    """A backbone that learns to draw the patches it was not shown. Made by :func:`create_mae`.

    Args:
        encoder: a backbone with the capability ``tokens``.
        mask_ratio: share of the patches that are masked, in (0, 1).
        norm_pix_loss: predict each patch's values relative to its own mean and deviation.
        decoder: matches the encoder.
    """

    weights_family = "mae"

    def __init__(self, encoder: Backbone, decoder: MAEDecoder, *, mask_ratio: float, norm_pix_loss: bool) -> None:
        super().__init__(encoder)
        check_ratio(mask_ratio, "0.75")
        self.decoder = decoder
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.patch_size = encoder.stride
        self.num_visible(self.grid_of(encoder.image_size))

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of what is masked at once. Raises ValueError for a size that does not divide."""
        p = self.patch_size
        if image_size[0] % p or image_size[1] % p:
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels does not divide into this model's patches "
                f"of {p} pixels; use multiples of {p}"
            )
        return image_size[0] // p, image_size[1] // p

    def num_visible(self, grid_size: tuple[int, int]) -> int:
        """How many patches of a grid stay visible: ``int(N * (1 - mask_ratio))``, as the reference rounds it.

        Raises:
            ValueError: if that is none of them, or all.
        """
        patches = grid_size[0] * grid_size[1]
        visible = int(patches * (1 - self.mask_ratio))
        if not 0 < visible < patches:
            what = "visible" if visible == 0 else "masked"
            raise ValueError(
                f"mask_ratio={self.mask_ratio} leaves no {what} patch of {patches} ({grid_size[0]}x{grid_size[1]}); "
                f"change the ratio, or use larger images or smaller patches"
            )
        return visible

    def encode(self, images: Tensor, keep: Tensor) -> Tokens:
        """(B, C, H, W) -> the encoder's normalised output for the patches in ``keep`` (B, n); no other is embedded."""
        tokens = self.encoder.encode(self.encoder.embed(images, keep))
        norm = norm_after_pool(self.encoder)
        return tokens if norm is None else tokens._replace(x=norm(tokens.x), prefix=norm(tokens.prefix))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> MaskedOutput:
        """(B, C, H, W) normalised images -> loss, prediction and mask.

        Args:
            images: H and W multiples of the patch size.
            noise: (B, N); the patches with the least noise stay visible. None draws it anew.

        Raises:
            ValueError: for images that are no multiple of the patch, or so small that the ratio leaves none to see or
                none to predict, or noise of another shape.
        """
        masking = self._masking(images, noise)
        prediction = self.decoder(self.encode(images, masking.keep), masking)
        loss = masked_pixel_loss(prediction, images, masking.mask, self.norm_pix_loss)
        return MaskedOutput(loss, prediction, masking.mask)

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss of :meth:`forward` with the same gradients, for training: visible patches are not predicted.

        Args and errors are those of :meth:`forward`. Returns a float32 scalar.
        """
        masking = self._masking(images, noise)
        prediction = self.decoder.hidden(self.encode(images, masking.keep), masking)
        return hidden_pixel_loss(prediction, images, masking.hidden, self.norm_pix_loss)

    def _masking(self, images: Tensor, noise: Tensor | None) -> Masking:
        grid = self.grid_of((images.shape[2], images.shape[3]))
        visible, patches = self.num_visible(grid), grid[0] * grid[1]
        if noise is None:
            noise = draw_noise(images, patches)
        check_noise(noise, images.shape[0], patches)
        return random_masking(noise, visible)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Mask, predict and put back together: (B, C, H, W) -> four pictures of the same shape."""
        return reconstruct(images, self(images, noise), self.patch_size, norm_pix=self.norm_pix_loss)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: tokens and position tables."""
        return super().no_weight_decay() | {"decoder.mask_token", "decoder.pos_embed"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, to save memory."""
        super().set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample both position tables to this model's grid; see :meth:`Backbone.adapt_state_dict`."""
        out, notes = super().adapt_state_dict(state_dict, stored_size)
        stored, p, new = out.get("decoder.pos_embed"), self.decoder.prefix_tokens, self.decoder.grid_size
        if stored is None or stored.ndim != 3 or stored.shape[1] <= p:
            return out, notes
        said = stored_size and (stored_size[0] // self.patch_size, stored_size[1] // self.patch_size)
        old = stored_grid(stored.shape[1] - p, new, said)
        if old != new:
            out["decoder.pos_embed"] = resample_positions(stored, new, old_grid=old, prefix_tokens=p)
            notes.append(f"decoder.pos_embed resampled from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens")
        return out, notes


def _fix_positions(encoder: Backbone) -> None:
    """Give the encoder fixed sine-cosine positions, where it has a position table (section 4, "ViT")."""
    table = getattr(encoder, "pos_embed", None)
    if table is None:
        return
    grid_size: tuple[int, int] = encoder.grid_size  # type: ignore[assignment]
    prefix = table.shape[1] - grid_size[0] * grid_size[1]
    with torch.no_grad():
        table.copy_(sincos_2d(grid_size, table.shape[2], prefix_tokens=prefix))
    table.requires_grad_(False)


def _init_weights(model: MAE) -> None:
    """As the reference starts: Xavier for every matrix, the patch embedding's included, and small random tokens."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and name == "encoder.patch_embed.proj":
            nn.init.xavier_uniform_(module.weight.flatten(1))
    for token in (model.decoder.mask_token, getattr(model.encoder, "cls_token", None)):
        if token is not None:
            nn.init.normal_(token, std=0.02)


def _decoder_size(encoder: Backbone, dim: int | None, depth: int | None, heads: int | None) -> tuple[int, int, int]:
    """Width, depth and heads of the decoder: as told, else light beside this encoder (section 4.1, "Decoder design").

    Raises:
        ValueError: for sizes that make no decoder.
    """
    if dim is None:
        unit = 32 if heads is None else 4 * heads
        dim = min(512, max(1, round(2 / 3 * encoder.num_features / unit)) * unit)
    if depth is None:
        blocks = getattr(encoder, "blocks", None)
        depth = 8 if blocks is None else min(8, max(1, round(2 / 3 * len(blocks))))
    if heads is None:
        heads = max(1, dim // 32)
    if depth < 1 or dim < 1 or heads < 1 or dim % (4 * heads):
        raise ValueError(
            f"decoder_dim={dim}, decoder_heads={heads}, decoder_depth={depth} must be positive, and the width a "
            "multiple of 4 * decoder_heads; the paper uses 512, 16 and 8"
        )
    return dim, depth, heads


def create_mae(
    backbone: str = "mae_vit_base_patch16",
    *,
    weights: Any = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    drop_path: float = 0.0,
    positions: str = "sincos",
    in_chans_policy: str | None = None,
) -> MAE:
    """Build a masked autoencoder, with the reference's initial values.

    Args:
        backbone: ``mae_vit_base_patch16``, ``mae_vit_large_patch16``, ``mae_vit_huge_patch14``, or any registered
            backbone with the capability ``tokens``.
        weights: None for random weights; otherwise a source for :func:`visionzoo.load_weights`, encoder and decoder.
            The official release's and transformers' checkpoints are understood.
        image_size: pixels, one number or (height, width), multiples of the patch; None for the backbone's own.
        in_chans: C.
        mask_ratio: share of the patches that are masked.
        norm_pix_loss: predict normalised patches (section 4.1: better features), or plain pixels (nicer pictures).
        decoder_dim: E; None for two thirds of the encoder's width, at most 512: the paper's width for its encoders,
            the smallest of which is 768 wide.
        decoder_depth: number of the decoder's blocks; None for two thirds of the encoder's, at most the paper's 8.
        decoder_heads: of each; None for one to 32 channels, as in the paper.
        drop_path: stochastic-depth rate of the encoder's last block.
        positions: ``sincos`` gives the encoder fixed sine-cosine positions, as in the paper; ``learned`` leaves it
            its own. A backbone without a position table (rotary, relative) keeps what it has.
        in_chans_policy: see :func:`visionzoo.load_weights`.

    Raises:
        ValueError: for an unknown backbone, one that cannot drop tokens (all CNNs), a mask ratio outside (0, 1) or one
            that leaves no visible or no masked patch, an image that is no multiple of the patch, a decoder width that
            is no multiple of 4 times its heads, or unfitting weights.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r} must be one of {', '.join(POSITIONS)}")
    check_ratio(mask_ratio, "0.75")
    known = MAE_BACKBONES.get(backbone)
    encoder = create_backbone(known or backbone, image_size=image_size, in_chans=in_chans, drop_path=drop_path)
    require_capability(encoder, "tokens", "MAE")
    if known:
        encoder.preprocess = replace(encoder.preprocess, mean=MEAN, std=STD, crop_pct=0.9)
    if positions == "sincos":
        _fix_positions(encoder)
    freeze_pool(encoder)
    size, p = encoder.image_size, encoder.stride
    dim, depth, heads = _decoder_size(encoder, decoder_dim, decoder_depth, decoder_heads)
    decoder = MAEDecoder(
        encoder.num_features,
        (size[0] // p, size[1] // p),
        p * p * in_chans,
        prefix_tokens=encoder.num_prefix_tokens,
        dim=dim,
        depth=depth,
        num_heads=heads,
    )
    model = MAE(encoder, decoder, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss)
    _init_weights(model)
    if known:
        model.name = backbone
    model.architecture = {
        "backbone": backbone,
        "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        "in_chans": in_chans,
        "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss,
        "decoder_dim": dim,
        "decoder_depth": depth,
        "decoder_heads": heads,
        "drop_path": drop_path,
        "positions": positions,
    }
    install_load_hook(model)
    if weights is not None:
        load_weights(model, weights, in_chans_policy=in_chans_policy)
    return model
