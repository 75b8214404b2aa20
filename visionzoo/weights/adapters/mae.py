"""Masked autoencoders, as facebookresearch/mae and transformers store them: the encoder alone, and with its decoder.

A whole model's canonical keys are ``encoder.*`` and ``decoder.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from visionzoo.weights.adapters.layout import DECODER, MASK_TOKEN, Layout
from visionzoo.weights.adapters.rules import Rule, move
from visionzoo.weights.adapters.transformers_vit import IN_MEMORY, LAYER, TRANSFORMERS_VIT, V5
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, with_class_position

MAE = Layout(
    name="mae",
    about="facebookresearch/mae, the encoder",
    family="vit",
    has_all=("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
    has_any=("decoder_embed.weight", "decoder_pos_embed"),
    rules=PLAIN_VIT,
    ignore=(
        ("mask_token", MASK_TOKEN),
        ("decoder_{x}", DECODER),
    ),
    refine=with_class_position,
)

#: Ours on the right. Blocks apart, the decoder of a MAE.
_DECODER = (
    ("mask_token", "mask_token"),
    ("decoder_pos_embed", "pos_embed"),
    ("decoder_embed.{p}", "embed.{p}"),
    ("decoder_norm.{p}", "norm.{p}"),
    ("decoder_pred.{p}", "pred.{p}"),
)
#: What a ViT classifier has and the encoder of a MAE has not.
_NOT_IN_ENCODER = ("head.{p}", "fc_norm.{p}", "blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias")


def _encoder(rules: Iterable[Rule], foreign: Callable[[str], str], part: str) -> tuple[Rule, ...]:
    """A ViT's rules, for a ViT that is the ``part`` of a larger model and has other foreign names there."""
    return tuple(
        replace(rule, foreign=tuple(map(foreign, rule.foreign)), timm=tuple(part + t for t in rule.timm))
        for rule in rules
        if not set(rule.timm) & set(_NOT_IN_ENCODER)
    )


def _blocks(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if all(t.startswith("blocks.") for t in rule.timm))


MAE_FULL = Layout(
    name="mae_full",
    about="facebookresearch/mae, encoder and decoder",
    family="mae",
    has_all=("cls_token", "blocks.0.attn.qkv.weight", "mask_token", "decoder_pos_embed", "decoder_embed.weight"),
    rules=(
        *_encoder(PLAIN_VIT, str, "encoder."),
        *_encoder(_blocks(PLAIN_VIT), lambda key: f"decoder_{key}", "decoder."),
        *(move(theirs, f"decoder.{ours}") for theirs, ours in _DECODER),
    ),
)


def _transformers(
    name: str, about: str, layers: str, decoder_layers: str, pairs: tuple[tuple[str, str], ...]
) -> Layout:
    rules = TRANSFORMERS_VIT.rules
    return Layout(
        name=name,
        about=about,
        family="mae",
        has_all=(
            "vit.embeddings.cls_token",
            f"{layers}0.layernorm_before.weight",
            f"{decoder_layers}0.layernorm_before.weight",
        ),
        rules=(
            *_encoder(rules, lambda key: "vit." + key, "encoder."),
            *_encoder(_blocks(rules), lambda key: key.replace(LAYER, "decoder.decoder_layers.{i}."), "decoder."),
            *(move(f"decoder.{theirs}", f"decoder.{ours}") for theirs, ours in _DECODER),
        ),
    ).renamed(name, about, ("vit.encoder.layer.", layers), ("decoder.decoder_layers.", decoder_layers), *pairs)


_ABOUT = "transformers' ViTMAEForPreTraining"
MAE_LAYOUTS = (
    MAE_FULL,
    _transformers("transformers_mae", _ABOUT, "vit.encoder.layer.", "decoder.decoder_layers.", ()),
    _transformers("transformers5_mae", _ABOUT + IN_MEMORY, "vit.layers.", "decoder.decoder_layers.", V5),
    # transformers 5 writes its decoder's blocks under this name, which earlier versions do not know.
    _transformers(
        "transformers5_mae_file",
        _ABOUT + ", as version 5 saves it",
        "vit.encoder.layer.",
        "decoder.decoder_encoder.layer.",
        (),
    ),
)
