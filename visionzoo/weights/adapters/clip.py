"""Whole CLIPs, as OpenAI and open_clip store them. Canonical is open_clip's form for a timm and its own text tower.

open_clip has two classes, with the text tower at the root or under ``text.``, and three kinds of image tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from visionzoo.weights.adapters.clip_tower import CLIP_TOWER
from visionzoo.weights.adapters.layout import BUFFER, Layout
from visionzoo.weights.adapters.rules import Rule, move

TRUNK = "visual.trunk."


def in_trunk(rules: Iterable[Rule], foreign: Callable[[str], str] = str) -> tuple[Rule, ...]:
    """A backbone's rules, for one that is the image tower of a CLIP and may have other foreign names there."""
    return tuple(
        replace(rule, foreign=tuple(map(foreign, rule.foreign)), timm=tuple(TRUNK + t for t in rule.timm))
        for rule in rules
    )


_LOGITS = (move("logit_scale", "logit_scale"), move("logit_bias", "logit_bias"))
_ROOT_TEXT = (
    move("positional_embedding", "text.positional_embedding"),
    move("token_embedding.weight", "text.token_embedding.weight"),
    move("transformer.{x}", "text.transformer.{x}"),
    move("ln_final.{p}", "text.ln_final.{p}"),
    move("text_projection", "text.text_projection"),
    *_LOGITS,
)
_OWN_TEXT = (move("text.{x}", "text.{x}"), *_LOGITS)
_VIT = (
    *in_trunk(CLIP_TOWER.rules),
    move("visual.proj", "visual.head.proj.weight", lambda t: t.T, lambda t: t.T),
)
_TIMM = (move(TRUNK + "{x}", TRUNK + "{x}"), move("visual.head.{x}", "visual.head.{x}"))

_STAGE, _UNIT = "visual.layer{i+1}.{j}.", TRUNK + "stages.{i}.{j}."
_RESNET = (
    move("visual.conv{i}.weight", TRUNK + "stem.conv{i}.conv.weight"),
    move("visual.bn{i}.{x}", TRUNK + "stem.conv{i}.bn.{x}"),
    *(
        rule
        for number, name in ((1, "conv1_1x1"), (2, "conv2_kxk"), (3, "conv3_1x1"))
        for rule in (
            move(f"{_STAGE}conv{number}.weight", f"{_UNIT}{name}.conv.weight"),
            move(f"{_STAGE}bn{number}.{{x}}", f"{_UNIT}{name}.bn.{{x}}"),
        )
    ),
    move(_STAGE + "downsample.0.weight", _UNIT + "shortcut.conv.conv.weight"),
    move(_STAGE + "downsample.1.{x}", _UNIT + "shortcut.conv.bn.{x}"),
    move("visual.attnpool.positional_embedding", TRUNK + "head.pos_embed"),
    *(move(f"visual.attnpool.{n}_proj.{{p}}", f"{TRUNK}head.{n}.{{p}}") for n in "qkv"),
    move("visual.attnpool.c_proj.{p}", "visual.head.proj.{p}"),
)
_IGNORE = (
    ("attn_mask", BUFFER),
    ("text.attn_mask", BUFFER),
    *((name, "sizes that OpenAI stores as tensors") for name in ("input_resolution", "context_length", "vocab_size")),
)
_ROOT, _OWN = "token_embedding.weight", "text.token_embedding.weight"
_VIT_KEYS = ("visual.class_embedding", "visual.conv1.weight")
_RESNET_KEYS = ("visual.conv3.weight", "visual.attnpool.positional_embedding")


def _layout(name: str, about: str, rules: tuple[Rule, ...], has_all: tuple[str, ...], timm: bool = False) -> Layout:
    return Layout(
        name=f"open_clip_{name}",
        about=about,
        family="clip",
        rules=rules,
        has_all=has_all,
        has_any=(TRUNK + "{x}",) if timm else (),
        ignore=_IGNORE,
    )


#: In this order the first that holds a model is written, so that open_clip's model of the same name can read it.
CLIP_LAYOUTS = (
    _layout("vit", "OpenAI's CLIP and open_clip's, with a ViT", _VIT + _ROOT_TEXT, (*_VIT_KEYS, _ROOT)),
    _layout("resnet", "OpenAI's CLIP and open_clip's, with a ResNet", _RESNET + _ROOT_TEXT, (*_RESNET_KEYS, _ROOT)),
    _layout("timm", "open_clip's CLIP with a timm image tower", _TIMM + _ROOT_TEXT, (_ROOT,), timm=True),
    _layout("custom_vit", "open_clip's CustomTextCLIP with its ViT", _VIT + _OWN_TEXT, (*_VIT_KEYS, _OWN)),
    _layout("custom_timm", "open_clip's CustomTextCLIP with a timm image tower", _TIMM + _OWN_TEXT, (_OWN,), timm=True),
)
