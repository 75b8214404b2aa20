"""facebookresearch/moco-v3's checkpoints of ViTs: query encoder, momentum encoder, projectors and predictor.

Those of ResNets have torchvision's names under ``base_encoder.``, which are timm's.
"""

from __future__ import annotations

from dataclasses import replace

from visionzoo.weights.adapters.layout import PRETRAIN_HEAD, Layout
from visionzoo.weights.adapters.vit_common import PLAIN_VIT, with_class_position

_QUERY = "base_encoder."

MOCO_V3 = Layout(
    name="moco_v3",
    about="facebookresearch/moco-v3",
    family="vit",
    has_all=tuple(_QUERY + key for key in ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight")),
    rules=tuple(replace(rule, foreign=tuple(_QUERY + key for key in rule.foreign)) for rule in PLAIN_VIT),
    ignore=(
        (_QUERY + "head.{i}.{x}", PRETRAIN_HEAD),
        ("predictor.{x}", PRETRAIN_HEAD),
        ("momentum_encoder.{x}", "momentum encoder of pretraining"),
    ),
    base=("module.",),
    refine=with_class_position,
)
