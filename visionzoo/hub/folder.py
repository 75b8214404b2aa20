"""The folder of a repository: weights, configuration, card, picture and ancestors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, cast

from PIL import Image

from visionzoo.backbones.base import Backbone
from visionzoo.files import atomic_path, write_text
from visionzoo.hub.card import CardFacts, model_card
from visionzoo.hub.layouts import write_open_clip, write_timm
from visionzoo.hub.licence import published_licence
from visionzoo.models.bundle import ModelConfig, load_bundle
from visionzoo.models.carried import copies_in
from visionzoo.models.clip.model import Clip
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lineage import lineage_of_run, write_lineage
from visionzoo.weights.hub import CARD_FILE

Layout = Literal["visionzoo", "timm", "open_clip", "transformers"]
#: The longest side of the card's picture, in pixels.
PICTURE = 900
PICTURE_FILE = "preview.webp"


def write_hub_folder(
    run: RunFolder, folder: Path, repository: str, *, layout: Layout = "visionzoo", licence: str | None = None
) -> str:
    """Write what a repository holds into an empty folder.

    Args:
        run: whose exported model it is.
        folder: exists, and is empty.
        repository: ``org/name``.
        layout: ``visionzoo``, which every command of ours opens by ``hf-hub:org/name``; or that of another library.
        licence: to publish under; None for what the ancestors ask for.

    Returns:
        the licence.

    Raises:
        FileNotFoundError, ValueError: for a run without an exported model, one that ``layout`` cannot hold, and as
            :func:`published_licence`.
    """
    lineage = lineage_of_run(run)
    allowed = published_licence(licence, lineage, run.path.resolve().name)
    model, config = load_bundle(run.path)
    _WRITERS[layout](run, model, config, folder)
    if lineage is not None:
        write_lineage(folder, lineage)
    facts = CardFacts(
        repository=repository, licence=allowed, lineage=lineage, layout=layout,
        picture=_picture(run, folder), 
    )  # fmt: skip
    write_text(folder / CARD_FILE, model_card(run, config, facts))
    return allowed


def _ours(run: RunFolder, model: object, config: ModelConfig, folder: Path) -> None:
    del model, config  # they were built from these files, so the files are good
    for path in (run.model, run.model_config):
        shutil.copyfile(path, folder / path.name)
    for option, copy in copies_in(run.path).items():
        shutil.copytree(copy, folder / option)


def _timm(run: RunFolder, model: object, config: ModelConfig, folder: Path) -> None:
    del run
    if config.task != "classify":
        raise ValueError(f"timm's layout is for classifiers, and this is a model of task {config.task!r}")
    write_timm(cast(Backbone, model), config, folder)


def _open_clip(run: RunFolder, model: object, config: ModelConfig, folder: Path) -> None:
    del run
    if not isinstance(model, Clip):
        raise ValueError(f"open_clip's layout is for CLIPs, and this is a model of task {config.task!r}")
    write_open_clip(model, config, folder)


def _transformers(run: RunFolder, model: object, config: ModelConfig, folder: Path) -> None:
    del model
    if config.task != "classify":
        raise ValueError(f"transformers' layout is for classifiers, and this is a model of task {config.task!r}")
    from visionzoo.export.to_transformers import export_transformers
    from visionzoo.inference.classifier import ImageClassifier

    inner = folder / "written"
    export_transformers(ImageClassifier.load(run.path, "cpu"), inner)
    for path in inner.iterdir():
        path.rename(folder / path.name)
    inner.rmdir()


_WRITERS = {"visionzoo": _ours, "timm": _timm, "open_clip": _open_clip, "transformers": _transformers}


def _picture(run: RunFolder, folder: Path) -> str | None:
    """The run's own picture for people, made small; None where it drew none."""
    drawn = (run.masks_sheet, run.retrieval, run.reconstruction, run.confusion_matrix, run.curves)
    found = next((path for path in drawn if path.is_file()), None)
    if found is None:
        return None
    try:
        with Image.open(found) as picture:
            picture.thumbnail((PICTURE, PICTURE))
            with atomic_path(folder / PICTURE_FILE) as temporary:
                picture.convert("RGB").save(temporary, format="WEBP", quality=80)
    except (OSError, ValueError) as error:
        raise ValueError(f"{found} is damaged ({error}); remove it to publish without a picture") from error
    return PICTURE_FILE
