"""python predict.py IMAGE X,Y[,0] ... [box:X0,Y0,X1,Y1]: the mask of what is clicked on, as IMAGE.mask.png.

A point with ",0" lies beside the object. Needs numpy, pillow and onnxruntime, nothing else."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SPEC = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
for line in (HERE / "SHA256SUMS").read_text().splitlines():
    if hashlib.sha256((HERE / line[66:]).read_bytes()).hexdigest() != line[:64]:
        sys.exit(f"{line[66:]} was changed after it was exported")


def rows(new: int, old: int) -> np.ndarray:
    """(new, old), the bilinear resampling of an axis, without antialiasing."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


if len(sys.argv) < 3:
    sys.exit(__doc__)
path, points, labels = sys.argv[1], [], []
picture = ImageOps.exif_transpose(Image.open(path))
if picture.mode.startswith("I;16"):
    picture = Image.fromarray(np.rint(np.asarray(picture) / 257.0).astype(np.uint8))
picture = picture.convert("RGBA" if picture.mode == "P" and "transparency" in picture.info else "RGB").convert("RGB")
(height, width), (old_height, old_width) = SPEC["image_size"], (picture.height, picture.width)
scale = min(height / old_height, width / old_width)
size = [min(max(int(n * scale + 0.5), 1), most) for n, most in ((old_height, height), (old_width, width))]
ratio = size[1] / old_width, size[0] / old_height
for text in sys.argv[2:]:
    numbers = [float(x) for x in text.removeprefix("box:").split(",")]
    box = text.startswith("box:")
    points += [numbers[:2], numbers[2:]] if box else [numbers[:2]]
    labels += [2, 3] if box else [int(numbers[2]) if len(numbers) > 2 else 1]
if 2 not in labels:  # as the model was trained
    points, labels = [*points, [0, 0]], [*labels, -1]
pixels = np.zeros((1, 3, height, width), np.uint8)
resized = picture.resize(size[::-1], Image.Resampling.BILINEAR)
pixels[0, :, : size[0], : size[1]] = np.asarray(resized).transpose(2, 0, 1)
encoder, decoder = (onnxruntime.InferenceSession(str(HERE / SPEC["files"][n])) for n in ("encoder", "decoder"))
(embeddings,) = encoder.run(None, {"images": pixels, "sizes": np.array([size])})
feed = {
    "embeddings": embeddings, "image_index": np.zeros(1, np.int64), "has_mask_input": np.zeros(1, bool),
    "point_coords": (np.array([points]) * ratio).astype(np.float32), "point_labels": np.array([labels]),
    "mask_input": np.zeros((1, 1, *SPEC["mask_size"]), np.float32),
}  # fmt: skip
masks, scores = (x[0] for x in decoder.run(None, feed))
best = 1 + scores[1:].argmax() if SPEC["ambiguous"] and sorted(labels) == [-1, 1] else 0  # one click has three answers
full = rows(height, masks.shape[1]) @ masks[best] @ rows(width, masks.shape[2]).T
full = rows(old_height, size[0]) @ full[: size[0], : size[1]] @ rows(old_width, size[1]).T
Image.fromarray(full > SPEC["mask_threshold"]).save(f"{Path(path).name}.mask.png")
print(path, f"score {scores[best]:.4f}", f"{(full > SPEC['mask_threshold']).sum()} pixels", sep="\t")
