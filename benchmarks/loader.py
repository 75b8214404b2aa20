"""Training images from JPEG files: visionzoo's pipeline against torchvision's and timm's.

    python benchmarks/loader.py --data.path FOLDER_OF_JPEGS --threads 1

Random resized crop to 224 with bilinear resampling (area 8 to 100 %) and a mirror image half of the time, as batches of
normalised float images on the CPU: decoding, augmentation, collation and normalisation are charged to all sides. Peers:
torchvision's ImageFolder with PIL and a DataLoader; timm's ``create_loader`` without and with its prefetcher, which
normalises whole batches. One core: loaders without workers, one thread.

Before anything is timed, pixels are compared on the same boxes: ``exact`` has to be PIL's bit for bit, as torchvision
and timm resize; of ``fast`` the difference is measured and recorded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Record, compare_cases, machine
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from visionzoo.data.augment import AugmentOptions
from visionzoo.data.dataset import Collate, ImageDataset
from visionzoo.data.images import image_extensions
from visionzoo.data.loader import make_loader
from visionzoo.data.sampler import TrainBatches, TrainOrder
from visionzoo.data.sources.folder import open_unlabelled
from visionzoo.data.transforms import TrainTransform
from visionzoo.models.preprocess import Normalize
from visionzoo.types import Preprocess

OURS = "visionzoo"
FAST = "visionzoo, fast"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
PEERS = ("torchvision", "timm", "timm, prefetcher")


def ours(args: argparse.Namespace, folder: Path, decode: Any) -> Callable[[], Iterable[Tensor]]:
    """Batches of our pipeline: its data set, order, loader and normalisation."""
    spec = _spec(args.size)
    source = open_unlabelled(str(folder))
    dataset = ImageDataset(source, TrainTransform(spec, _options(decode)), substitute=True)
    order = TrainOrder(len(source), args.batch, seed=0, rank=0, world_size=1, drop_last=False, weights=None)
    epoch = iter(range(10**9))
    batches = TrainBatches(order, lambda: (next(epoch), 0))
    loader = make_loader(dataset, Collate(source, (3, args.size, args.size)), batch_sampler=batches)
    normalize = Normalize(spec)

    def run() -> Iterable[Tensor]:
        for batch in loader:
            yield normalize(batch.images)

    return run


def torchvision(args: argparse.Namespace, folder: Path) -> Callable[[], Iterable[Tensor]]:
    """``ImageFolder`` with PIL, as its reference training scripts have it."""
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(args.size, scale=SCALE, ratio=RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(data, batch_size=args.batch, shuffle=True)
    return lambda: (images for images, _ in loader)


def timm(args: argparse.Namespace, folder: Path, *, prefetcher: bool) -> Callable[[], Iterable[Tensor]]:
    """timm's data set and loader with its own transform."""
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder))
    loader = create_loader(
        data,
        input_size=(3, args.size, args.size),
        batch_size=args.batch,
        is_training=True,
        use_prefetcher=prefetcher,
        scale=SCALE,
        ratio=RATIO,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return lambda: (images for images, _ in loader)


def _spec(size: int) -> Preprocess:
    return Preprocess(image_size=(size, size), interpolation="bilinear", mean=MEAN, std=STD, crop_pct=0.875)


def _options(decode: Any) -> AugmentOptions:
    return AugmentOptions(crop_scale=SCALE, crop_ratio=RATIO, policy="none", decode=decode)


def compare_pixels(files: list[Path], size: int, views: int) -> dict[str, dict[str, float]]:
    """How far our pixels are from those of PIL on the same boxes, with ``views`` views of each file.

    Raises:
        SystemExit: if the exact ones are not the same.
    """
    found = {}
    for decode in ("exact", "fast"):
        transform = TrainTransform(_spec(size), _options(decode))
        most, total, changed, count = 0, 0, 0, 0
        for key, file in enumerate(files * views):
            with Image.open(file) as image:
                whole = image.convert("RGB")
            boxes: list[tuple[int, int, int, int]] = []
            draw = transform._crop.get_params_dependent_on_data
            transform._crop.get_params_dependent_on_data = partial(_noting, boxes, draw)
            view = transform(str(file), key).numpy().transpose(1, 2, 0)
            transform._crop.get_params_dependent_on_data = draw
            expected = np.array(whole.crop(boxes[0]).resize((size, size), Image.Resampling.BILINEAR))
            away = np.abs(view.astype(int) - expected)
            mirrored = np.abs(view.astype(int) - expected[:, ::-1])
            away = mirrored if mirrored.sum() < away.sum() else away
            most, total = max(most, int(away.max())), total + int(away.sum())
            changed, count = changed + int((away > 0).sum()), count + away.size
        found[decode] = {"largest": most, "mean": total / count, "share_changed": changed / count}
        print(
            f"{decode}: pixel values differ from PIL's by at most {most} of 255, {total / count:.4f} on average; "
            f"{changed / count:.2%} of them differ"
        )
    if found["exact"]["largest"]:
        raise SystemExit("the exact pipeline does not give PIL's pixels; nothing was timed")
    return found


def _noting(boxes: list[tuple[int, int, int, int]], draw: Callable[..., Any], *args: Any) -> Any:
    params = draw(*args)
    left, top, right, bottom = params["crop_coords"]
    boxes.append((int(left), int(top), int(right), int(bottom)))
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", required=True, help="folder of JPEGs, at any depth")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--limit", type=int, default=200, help="images, each read once a round")
    parser.add_argument("--views", type=int, default=1, help="views of each image whose pixels are compared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/loader-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    endings = image_extensions() & {".jpg", ".jpeg"}
    files = sorted(p for p in Path(args.path).rglob("*") if p.suffix.lower() in endings)[: args.limit]
    if not files:
        parser.error(f"no .jpg or .jpeg files in {args.path}")
    facts: dict[str, Any] = {"machine": machine("cpu", ("timm", "torchvision", "pillow")), "images": len(files)}
    facts["pixels"] = compare_pixels(files, args.size, args.views)
    record = Record("loader-cpu", facts, args.out)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "only"
        folder.mkdir()
        for i, file in enumerate(files):
            (folder / f"{i:06d}{file.suffix}").symlink_to(file.resolve())
        sides: dict[str, Callable[[], Iterable[Tensor]]] = {
            OURS: ours(args, folder, "exact"),
            FAST: ours(args, folder, "fast"),
            "torchvision": torchvision(args, folder.parent),
            "timm": timm(args, folder.parent, prefetcher=False),
            "timm, prefetcher": timm(args, folder.parent, prefetcher=True),
        }
        cases = {name: partial(_drain, batches) for name, batches in sides.items()}
        for peer in PEERS:
            measure = partial(
                compare_cases,
                f"{len(files)} JPEGs, against {peer}",
                {OURS: cases[OURS], FAST: cases[FAST], peer: cases[peer]},
                peer,
                rounds=args.rounds,
                warmup=args.warmup,
                units=dict.fromkeys((OURS, FAST, peer), float(len(files))),
            )
            record.row(f"against {peer}", measure)
    record.finish()


def _drain(batches: Callable[[], Iterable[Tensor]]) -> None:
    count = 0
    for images in batches():
        assert images.dtype == torch.float32
        count += len(images)


if __name__ == "__main__":
    main()
