"""The pictures of README, by the commands that it prints, from models and pictures of the package.

python docs/make_images.py
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from visionzoo.data.sources.open import open_data
from visionzoo.data.sources.shapes import draw
from visionzoo.inference.classifier import ImageClassifier
from visionzoo.inference.score import score
from visionzoo.viz import confusion_matrix

DOCS = Path(__file__).resolve().parent
SAMPLES = DOCS.parent / "visionzoo" / "serve" / "samples"
HEIGHT = 240  #: of every picture, in pixels
COMMANDS = {
    "mask": "masks nuclei.png --model embedded --point 144,144 --out mask.png",
    "search": 'search shapes/ "a blue star" --model embedded --top 3 --out search.png',
    "reconstruct": "reconstruct shapes/16.png shapes/05.png --model embedded --out reconstruct.png",
    "attention": "attention three.png --model embedded --out attention.png",
}


def main() -> None:
    """Draws them all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shapes").mkdir()
        for i in range(24):
            draw(7, i, size=128).image.save(folder / "shapes" / f"{i:02d}.png")
        Image.open(SAMPLES / "nuclei-1.png").crop((84, 14, 180, 110)).resize((288, 288)).save(folder / "nuclei.png")
        shutil.copy(DOCS / "images" / "three.png", folder)
        for command in COMMANDS.values():
            print("visionzoo", command)
            subprocess.run(["visionzoo", *shlex.split(command)], cwd=folder, check=True)
        held_out = open_data("digits").val
        assert held_out is not None
        found = score(ImageClassifier.load("embedded", "cpu"), held_out)
        confusion_matrix(found.matrix, found.labels, folder / "confusion.png", title="Held-out digits")
        for picture in (*COMMANDS, "confusion"):
            image = Image.open(folder / f"{picture}.png").convert("RGB")
            image.thumbnail((10 * HEIGHT, HEIGHT))
            image.save(DOCS / "images" / f"{picture}.webp", quality=85)


if __name__ == "__main__":
    main()
