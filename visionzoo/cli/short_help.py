"""``train.py TASK fit --help``: the options that most runs name, on one screen. ``--help-all`` lists every one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

#: In the order of the page; a task shows those that it has.
ALWAYS: dict[str, str] = {
    "data.path": "a folder of images, a file that lists them, or a built-in set (digits, shapes)",
    "data.val_path": "held-out images of their own",
    "data.batch_size": "images in a step, or auto",
    "data.num_workers": "processes that read images",
    "model.backbone": "a name from `visionzoo models`, or timm/NAME",
    "model.weights": "a run, a file, a folder, hf-hub:org/name or timm:tag",
    "model.image_weights": "the same for the image tower alone",
    "model.backbone_weights": "the same for the image encoder alone",
    "model.image_size": "pixels that the network sees",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed",
    "trainer.accelerator": "cpu, gpu, mps, auto",
    "trainer.devices": "how many of them",
    "run_dir": "where results go",
}
#: Of ``fit`` alone.
TRAINING: dict[str, str] = {
    "data.crop": "which part of an image a training step sees",
    "data.policy": "augmentation: none, randaugment and others",
    "model.method": "what is learned by",
    "model.finetune": "full, head (a linear probe) or lora",
    "model.lock_image": "train the text tower alone (LiT)",
    "model.encoder": "frozen, lora or full",
    "model.text": "size of the text tower",
    "model.mask_ratio": "share of an image that is hidden",
    "model.lr": "peak learning rate",
    "model.base_lr": "the same for 256 images, scaled to the real number",
    "model.optimizer": "adamw, or another of timm's",
    "model.weight_decay": "pull of weights towards zero",
    "model.layer_decay": "factor on lr for each layer further from the output",
    "model.warmup_epochs": "epochs until lr is at its peak",
    "model.mixup": "strength of mixup; 0 for none",
    "model.drop_path": "stochastic depth of the last block",
    "model.ema_decay": "moving average of the weights; 0 for none",
    "trainer.max_epochs": "how long",
    "seed_everything": "seed of everything that is random",
    "early_stopping": "end after so many validations without a better score; 0 never",
    "save_every_n_steps": "saves inside an epoch; 0 for none",
}
_COLUMN = 26


def wants_all(arg: str) -> bool:
    """Whether this asks for the long list."""
    return arg in ("--help-all", "--help_all")


def short_page(actions: Iterable[argparse.Action], program: str, subcommand: str) -> str:
    """The page: a line for each of :data:`ALWAYS` and, for ``fit``, of :data:`TRAINING`, with its default."""
    by_name = {name.lstrip("-"): action for action in actions for name in action.option_strings}
    texts = {**ALWAYS, **(TRAINING if subcommand == "fit" else {})}
    # options of one kind together, in the order in which the kinds are read
    kinds = ("data", "model", "trainer")
    names = sorted(texts, key=lambda name: kinds.index(k) if (k := name.partition(".")[0]) in kinds else len(kinds))
    lines = [
        f"usage: {program} {subcommand} [--config FILE] [--resume DIR] [--model.X v] [--data.X v] [--trainer.X v]",
        "",
        *(_line(name, texts[name], by_name[name].default) for name in names if name in by_name),
        f"  {'--config FILE':<{_COLUMN}}options from a YAML file; later options win",
        f"  {'--resume DIR':<{_COLUMN}}go on with the run in DIR",
        "",
        f"{program} {subcommand} --help-all lists all {len(by_name)} options.",
    ]
    return "\n".join(lines)


def _line(name: str, text: str, default: Any) -> str:
    said = "" if default in (None, argparse.SUPPRESS, "", []) else f" (default: {default})"
    return f"  {'--' + name:<{_COLUMN}}{text}{said}"
