"""How long a person waits for a given accuracy, fine-tuning the same pretrained ViT on the same photographs.

    python benchmarks/time_to_accuracy.py --data.path PHOTOS --weights FOLDER [--target 0.94] [--only visionzoo,timm]

Three ways, in one process, in turns: whichever has used the least time goes on, so that a busy machine is busy for all.

- ``visionzoo``: what ``visionzoo fit`` does. Features of the frozen network once, a linear head on them, then full
  fine-tuning from that head with the recipe of :mod:`visionzoo.auto.recipes`; at ``--our_size`` pixels, in training
  and when it is looked at.
- ``timm``: a plain loop with timm's network and torchvision's transforms, the same recipe, and a fresh head.
- ``transformers``: its Trainer, with the recipe of its image-classification example at the learning rate given.

Time is that of reading, computing and stepping, features and heads included; looking at the held-out images is not
counted for anyone. PHOTOS has train/ and val/; with ``--dev`` a fifth of train/ takes the place of val/, which is how
recipes are chosen. FOLDER is in the layout of transformers, as ``../shared/tools/real_weights.py`` writes it.
"""

from __future__ import annotations

import argparse
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Record, machine
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Photos:
    """Images that are trained on, and those that are looked at."""

    train: list[tuple[Path, int]]
    held: list[tuple[Path, int]]
    classes: tuple[str, ...]
    size: int
    batch: int

    def held_pixels(self) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised centre crops and (N,) labels: the same for everyone."""
        from torchvision.transforms import v2

        look = v2.Compose(
            [v2.Resize(round(self.size / 0.875), interpolation=3), v2.CenterCrop(self.size), *to_tensor()]
        )
        pixels = torch.stack([look(Image.open(path).convert("RGB")) for path, _ in self.held])
        return pixels, torch.tensor([label for _, label in self.held])


def to_tensor() -> list[Any]:
    """uint8 picture -> normalised float32, as torchvision does it."""
    from torchvision.transforms import v2

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


@dataclass
class Contender:
    """A training that stands still whenever it is told to."""

    name: str
    train: Callable[[Contender], None]  #: sets ``model``, and calls :meth:`step_done` after each step
    model: Any = None
    logits: Callable[[Any], Tensor] | None = None  #: out of what the model gives; None where it gives them
    held: tuple[Tensor, Tensor] | None = None  #: pixels and labels that are looked at
    seconds: float = 0.0
    images: int = 0  #: that were trained on
    curve: list[tuple[float, float, float]] = field(default_factory=list)  #: (seconds, epochs, accuracy)
    done: bool = False
    error: BaseException | None = None
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stood: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None

    def step_done(self, images: int) -> None:
        """Called by the training: stand still until it is its turn again."""
        self.images += images
        self._stood.release()
        self._go.acquire()
        if self.done:
            raise StopTraining

    def turn(self) -> None:
        """Let it take a step, and count the time."""
        begun = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._stood.acquire()
        self.seconds += time.monotonic() - begun

    def end(self) -> None:
        """Have it stop where it stands."""
        self.done = True
        self._go.release()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            self.train(self)
        except StopTraining:
            pass
        except BaseException as error:  # said by the main thread
            self.error = error
        self.done = True
        self._stood.release()


class StopTraining(Exception):
    """The target is reached."""


def visionzoo(photos: Photos, options: argparse.Namespace) -> Callable[[Contender], None]:
    """As ``visionzoo fit``: features, a head on them, and all weights from there."""

    def train(me: Contender) -> None:
        import pytorch_lightning as pl

        from visionzoo.auto.network import fill_head
        from visionzoo.auto.recipes import DataFacts, recipe
        from visionzoo.data.classify import ClassifyData
        from visionzoo.inference.frozen import fit_head, folds_of, score_linear
        from visionzoo.tasks.classify import ClassifyTask
        from visionzoo.tasks.engine.quiet import quiet_lightning

        quiet_lightning()
        facts = DataFacts(images=len(photos.train), classes=len(photos.classes), pixels=photos.size)
        made = recipe("full", facts, options.epochs, precision=options.precision, workers=0)
        table = Path(options.scratch) / "train.csv"
        lines = [f"{path},{photos.classes[label]}" for path, label in photos.train]
        table.write_text("\n".join(["path,label", *lines]), encoding="utf-8")
        data = ClassifyData(path=str(table), seed=options.seed, **{**made.data, "val_fraction": 0.0})
        task = ClassifyTask(
            num_classes=data.num_classes, classes=data.classes, backbone=options.backbone, weights=options.weights,
            image_size=photos.size, **made.model,
        )  # fmt: skip
        me.model = model = task.model
        order = [data.classes.index(name) for name in photos.classes]  # a table has an order of its own
        me.logits = lambda output: output[:, order]
        reader = photos_reader(photos, augment=False)
        values, labels = [], np.array([order[label] for _, label in photos.train])
        model.eval()
        for start in range(0, len(photos.train), photos.batch):
            rows = range(start, min(start + photos.batch, len(photos.train)))
            with torch.inference_mode():
                values.append(model.embed_images(torch.stack([reader(i) for i in rows])))
            me.step_done(0)
        features = torch.cat(values).numpy()
        groups = np.arange(len(labels))
        folds = folds_of(labels, groups, features.shape[1], len(photos.classes), options.seed)
        choice = score_linear(features, labels, len(photos.classes), folds)
        fill_head(model, fit_head(features, labels, len(photos.classes), choice.strength, None))
        me.step_done(0)

        class Turns(pl.Callback):
            def on_train_batch_end(self, *given: Any) -> None:
                me.step_done(len(given[3].images))
                model.train()

        trainer = pl.Trainer(
            **made.trainer, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, callbacks=[Turns()],
        )  # fmt: skip
        trainer.fit(task, datamodule=data)

    return train


def photos_reader(photos: Photos, *, augment: bool) -> Callable[[int], Tensor]:
    """Training image ``i`` by torchvision: the region, flip and colour of our recipe, or the centre."""
    from torchvision.transforms import v2

    steps: list[Any] = [v2.Resize(round(photos.size / 0.875), interpolation=3), v2.CenterCrop(photos.size)]
    if augment:
        steps = [
            v2.RandomResizedCrop(photos.size, scale=(0.4, 1.0), interpolation=3, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
        ]
    look = v2.Compose([*steps, *to_tensor()])

    def read(i: int) -> Tensor:
        with Image.open(photos.train[i][0]) as picture:
            return look(picture.convert("RGB"))

    return read


def timm_loop(photos: Photos, options: argparse.Namespace) -> Callable[[Contender], None]:
    """timm's network, its parameter groups and schedule, torchvision's transforms."""

    def train(me: Contender) -> None:
        import timm
        from timm.optim import create_optimizer_v2

        from visionzoo.models.classifier import create_classifier

        ours = create_classifier(options.backbone, len(photos.classes), weights=options.weights, image_size=photos.size)
        model: Any = timm.create_model(options.backbone, num_classes=len(photos.classes), img_size=photos.size)
        model.load_state_dict(ours.state_dict())
        model.reset_classifier(len(photos.classes))
        me.model = model
        optimizer = create_optimizer_v2(
            model, opt="adamw", lr=options.timm_lr, weight_decay=0.05, layer_decay=options.timm_layer_decay
        )
        steps = options.timm_epochs * (len(photos.train) // photos.batch)
        plain_loop(me, photos, options, model, optimizer, steps)

    return train


def plain_loop(
    me: Contender, photos: Photos, options: argparse.Namespace, model: nn.Module, optimizer: Any, steps: int
) -> None:
    """A warm-up over a tenth, a cosine, label smoothing 0.1, clipping at 1: our recipe."""
    from torch.optim.lr_scheduler import LambdaLR

    warmup = max(1, steps // 10)
    scheduler = LambdaLR(
        optimizer,
        lambda s: (s + 1) / warmup if s < warmup else 0.5 * (1 + np.cos(np.pi * (s - warmup) / max(1, steps - warmup))),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    read = photos_reader(photos, augment=True)
    generator = torch.Generator().manual_seed(options.seed)
    done = 0
    while done < steps:
        order = torch.randperm(len(photos.train), generator=generator).tolist()
        for start in range(0, len(order) - photos.batch + 1, photos.batch):
            rows = order[start : start + photos.batch]
            model.train()
            images = torch.stack([read(i) for i in rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):
                loss = criterion(model(images), torch.tensor([photos.train[i][1] for i in rows]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            done += 1
            me.step_done(len(rows))


def transformers_trainer(photos: Photos, options: argparse.Namespace) -> Callable[[Contender], None]:
    """transformers' own Trainer and network."""

    def train(me: Contender) -> None:
        from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments

        model = AutoModelForImageClassification.from_pretrained(
            options.weights, num_labels=len(photos.classes), local_files_only=True
        )
        me.model, me.logits = model, lambda output: output.logits
        read = photos_reader(photos, augment=True)

        class Rows(torch.utils.data.Dataset[dict[str, Any]]):
            def __len__(self) -> int:
                return len(photos.train)

            def __getitem__(self, i: int) -> dict[str, Any]:
                return {"pixel_values": read(i), "labels": photos.train[i][1]}

        class Turns(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                me.step_done(photos.batch)
                model.train()

        arguments = TrainingArguments(
            output_dir=f"{options.scratch}/transformers", per_device_train_batch_size=photos.batch,
            learning_rate=options.transformers_lr, num_train_epochs=options.transformers_epochs,
            warmup_steps=options.transformers_epochs * len(photos.train) // photos.batch // 10,
            weight_decay=0.05, label_smoothing_factor=0.1, save_strategy="no", logging_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, bf16=options.precision == "bf16-mixed", dataloader_drop_last=True,
            seed=options.seed, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Turns()]).train()

    return train


WAYS: dict[str, Callable[[Photos, argparse.Namespace], Callable[[Contender], None]]] = {
    "visionzoo": visionzoo,
    "timm": timm_loop,
    "transformers": transformers_trainer,
}


def open_photos(options: argparse.Namespace) -> Photos:
    """Class folders below train/ and val/, every ``--stride``-th of each."""
    root = Path(options.path)
    classes = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))

    def listed(split: str) -> list[tuple[Path, int]]:
        found = [(p, k) for k, name in enumerate(classes) for p in sorted((root / split / name).iterdir())]
        return found[:: options.stride]

    train, held = listed("train"), listed("val")
    if options.dev:
        order = np.random.default_rng(options.seed).permutation(len(train))
        cut = len(train) // 5
        held, train = [train[i] for i in order[:cut]], [train[i] for i in order[cut:]]
    return Photos(train, held, classes, options.image_size, options.batch)


def accuracy(me: Contender) -> float:
    """Share that is named right, in eval mode."""
    assert me.held is not None
    pixels, labels = me.held
    me.model.eval()
    with torch.inference_mode():
        outputs = [me.model(part) for part in pixels.split(50)]
        answers = torch.cat([(o if me.logits is None else me.logits(o)).argmax(1) for o in outputs])
    return float((answers == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--our_size", type=int, help="of visionzoo, where it is another")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--target", type=float, default=0.94)
    parser.add_argument("--every", type=float, default=0.25, help="epochs between two looks")
    parser.add_argument("--epochs", type=int, default=2, help="of ours")
    parser.add_argument("--timm_epochs", type=int, default=4)
    parser.add_argument("--timm_lr", type=float, default=1e-4)
    parser.add_argument("--timm_layer_decay", type=float, default=0.75)
    parser.add_argument("--transformers_epochs", type=int, default=4)
    parser.add_argument("--transformers_lr", type=float, default=5e-5)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true", help="of everyone's steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1, help="take every n-th photograph, for a try")
    parser.add_argument("--dev", action="store_true", help="a fifth of train/ in place of val/")
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--out")
    options = parser.parse_args()
    import tempfile

    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as options.scratch:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """All ways, in turns, until each has reached the target or its epochs are over."""
    photos = open_photos(options)
    sizes = {"visionzoo": options.our_size or options.image_size}
    held: dict[int, tuple[Tensor, Tensor]] = {}
    contenders = []
    torch.manual_seed(options.seed)
    for name in options.only.split(","):
        shown = replace(photos, size=sizes.get(name, options.image_size))
        if shown.size not in held:
            held[shown.size] = shown.held_pixels()
        contenders.append(Contender(name, WAYS[name](shown, options), held=held[shown.size]))
    looked = dict.fromkeys((c.name for c in contenders), 0.0)
    while running := [c for c in contenders if not c.done]:
        me = min(running, key=lambda c: c.seconds)
        me.turn()
        if me.error is not None:
            raise RuntimeError(f"{me.name} failed") from me.error
        epochs = me.images / len(photos.train)
        if me.model is None or (epochs - looked[me.name] < options.every and not me.done):
            continue
        looked[me.name] = epochs
        value = accuracy(me)
        me.curve.append((round(me.seconds, 1), round(epochs, 2), round(value, 4)))
        print(f"{me.name:<14}{me.seconds:8.0f} s  {epochs:5.2f} epochs  {100 * value:6.2f} %", flush=True)
        if value >= options.target:
            me.end()
    said = {name: value for name, value in vars(options).items() if name not in ("path", "weights", "out", "scratch")}
    facts = {"machine": machine(packages=("timm", "torchvision", "transformers")), "options": said}
    record = Record("time-to-accuracy-cpu", facts, options.out)
    for me in contenders:
        reached = next((seconds for seconds, _, value in me.curve if value >= options.target), None)
        record.row(me.name, lambda me=me, reached=reached: {"seconds": reached, "curve": me.curve})
    record.finish()


if __name__ == "__main__":
    main()
