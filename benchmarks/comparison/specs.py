"""What is to be found out, as pieces: which process does what with which settings, and what its record is about."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison.models import Entry
from comparison.options import PRETRAINED, Plan
from comparison.pieces import Piece, Store, key_of, training_key
from comparison.recipes import PUBLISHED, Recipe, published

__all__ = ["Specs"]


class Specs:
    """The pieces of one comparison. Nothing is done here."""

    def __init__(self, plan: Plan, data: dict[str, Any], methods: dict[str, str], store: Store) -> None:
        """
        Args:
            plan: the options, checked.
            data: what is known of the images: name, counts, fingerprint.
            methods: how networks are pretrained, by name.
            store: knows where a piece leaves what is kept of it.
        """
        self.plan, self.options, self.data, self.methods, self.store = plan, plan.options, data, methods, store
        self.out = Path(self.options.out)

    def recipe(self, entry: Entry, column: str) -> Recipe:
        """What a model is trained by in a column."""
        return PUBLISHED[published(entry.name, entry.kind)] if column == "published" else self.options.equal

    def speed(self, entry: Entry, job: str) -> Piece:
        """Throughput, latency and peak memory of a network at ``job``, inference or training."""
        options = self.options
        spec = {
            "job": job,
            "model": entry.name,
            "image_size": options.image_size,
            "num_classes": self.data["classes"],
            "batch": options.speed_batch,
            "rounds": options.speed_rounds,
            "precision": options.precision,
            "channels_last": options.memory_format == "channels_last",
            "device": self.plan.device,
        }
        return Piece("speed", key_of("speed", entry.label, job), {"model": entry.name, "job": job}, spec)

    def training(self, entry: Entry, column: str, seed: int, fraction: float, steps: int, kind: str = "train") -> Piece:
        """A network by a recipe; ``kind`` is ``train``, or ``pace`` for the trial that tells how long a step takes."""
        options = self.options
        run = {
            "model": entry.name,
            "recipe": asdict(self.recipe(entry, column)),
            "steps": steps,
            "batch_size": options.budget.batch_size,
            "image_size": options.image_size,
            "seed": seed,
            "fraction": fraction,
            "weights": str(self.store.weights(self.pretraining(entry, seed).key)) if column == PRETRAINED else None,
            "path": options.data.path,
            "val_path": options.data.val_path,
            "num_workers": options.data.num_workers,
            "precision": options.precision,
            "channels_last": options.memory_format == "channels_last",
            "device": self.plan.device,
        }
        # robustness is that of the model with most images, and so are exported files
        whole = fraction == max(self.plan.fractions.get(column, [1.0]))
        evaluation = {
            "limit": options.data.eval_limit,
            "corruptions": self.plan.corruptions if whole else [],
            "corruption_limit": options.data.corruption_limit,
            "batch": max(options.speed_batch, options.budget.batch_size),
        }
        about = {"model": entry.name, "recipe": column, "seed": seed, "fraction": fraction}
        key = training_key(entry, column, seed, fraction, kind)
        evaluation["answers_to"] = str(self.store.answers(key))
        spec = {"run": run, "evaluation": evaluation, "folder": str(self.out / "work" / key / "run")}
        spec["export"] = {
            "precisions": self.plan.exported if whole else [],
            "limit": options.data.eval_limit,
            "batch": options.speed_batch,
            "rounds": options.speed_rounds,
            "answers": str(self.store.answers(key)),
        }
        return Piece(kind, key, about, spec)

    def pretraining(self, entry: Entry, seed: int) -> Piece:
        """A network without labels, before the column of pretrained ones."""
        options, method = self.options, self.methods[entry.name]
        key = key_of("pretrain", entry.label, f"seed{seed}")
        run = {
            "model": entry.name,
            "method": method,
            "steps": options.pretrain.steps,
            "batch_size": options.budget.batch_size,
            "image_size": options.image_size,
            "base_lr": options.pretrain.base_lr,
            "seed": seed,
            "path": options.data.path,
            "val_path": options.data.val_path,
            "num_workers": options.data.num_workers,
            "precision": options.precision,
            "device": self.plan.device,
        }
        spec = {"run": run, "folder": str(self.out / "work" / key / "run"), "weights": str(self.store.weights(key))}
        return Piece("pretrain", key, {"model": entry.name, "seed": seed, "method": method}, spec)

    def probing(self, seed: int, fraction: float) -> Piece:
        """A linear classifier on the frozen backbone beside the networks."""
        options, probe = self.options, self.options.probe
        assert probe.model is not None
        assert probe.weights is not None
        about = {"model": probe.model, "recipe": "probe", "seed": seed, "fraction": fraction}
        about |= {"weights": Path(probe.weights).name, "image_size": probe.image_size}
        key = key_of("probe", probe.model, f"seed{seed}", f"{fraction:g}")
        spec = {
            "model": probe.model,
            "weights": probe.weights,
            "image_size": probe.image_size,
            "path": options.data.path,
            "val_path": options.data.val_path,
            "seed": seed,
            "fraction": fraction,
            "batch_size": probe.batch_size,
            "device": self.plan.device,
            "answers": str(self.store.answers(key)),
        }
        return Piece("probe", key, about, spec)
