"""python predict.py IMAGE...: what the model says of images. Needs numpy, pillow and onnxruntime, nothing else."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SPEC = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
for line in (HERE / "SHA256SUMS").read_text().splitlines():
    if hashlib.sha256((HERE / line[66:]).read_bytes()).hexdigest() != line[:64]:
        sys.exit(f"{line[66:]} was changed after it was exported")


def fitted(image: Image.Image) -> np.ndarray:
    """(C, H, W) uint8 of a picture: upright, RGB or grey, resized, then cropped or padded, as in evaluation."""
    spec, image = SimpleNamespace(**SPEC["preprocess"]), ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
    see_through = image.mode == "P" and "transparency" in image.info
    image = image.convert("RGBA" if see_through else "RGB").convert("RGB")
    height, width = spec.image_size
    edges = int(height / spec.crop_pct), int(width / spec.crop_pct)
    if spec.resize_mode == "squash":
        new = edges
    elif spec.resize_mode == "shortest" and edges[0] == edges[1]:
        longer = int(edges[0] * max(image.size) / min(image.size))
        new = (longer, edges[0]) if image.width <= image.height else (edges[0], longer)
    else:
        ratios = image.height / edges[0], image.width / edges[1]
        ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
        whole = (lambda x: int(x + 0.5)) if spec.pad_anchor == "top_left" else round
        new = max(whole(image.height / ratio), 1), max(whole(image.width / ratio), 1)
    image = image.resize(new[::-1], getattr(Image.Resampling, spec.interpolation.upper()))
    missing = max(width - image.width, 0), max(height - image.height, 0)
    if any(missing):
        size, small = (image.width + missing[0], image.height + missing[1]), image
        image = Image.new("RGB", size, tuple(np.broadcast_to(spec.pad_value, 3).tolist()))
        image.paste(small, (0, 0) if spec.pad_anchor == "top_left" else (missing[0] // 2, missing[1] // 2))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image).transpose(2, 0, 1) if len(spec.mean) == 3 else np.asarray(image.convert("L"))[None]


file = HERE / (SPEC["files"].get("model") or SPEC["files"]["image"])
session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
for path in sys.argv[1:] or sys.exit(__doc__):
    pixels = fitted(Image.open(path))
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"images": pixels[None]}), strict=True))
    if "labels" in SPEC:
        scores = found["probabilities"][0]
        print(path, *(f"{SPEC['labels'][k]} {scores[k]:.6f}" for k in scores.argsort()[::-1][:5]), sep="\t")
    else:
        np.savez(f"{Path(path).name}.npz", **found)
        print(path, *(f"{name} {values.shape}" for name, values in found.items()), sep="\t")
