"""Everything that one server holds: its models, its folder, and the pictures that it was sent.

What the first page does not need is imported where it is used: a person waits for it.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from visionzoo.export.folder import is_exported
from visionzoo.inference.classifier import ImageClassifier, ImageLabeller
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.search import ImageSearch
from visionzoo.models.bundle import read_config
from visionzoo.serve.annotations import FILE, Annotations
from visionzoo.serve.batching import Batcher
from visionzoo.serve.bounds import Bounds, Refused
from visionzoo.serve.confusion import Confusion
from visionzoo.serve.folder import PictureFolder
from visionzoo.serve.measure import ServerMetrics
from visionzoo.serve.pictures import PictureStore
from visionzoo.serve.samples import SHAPE_LABELS, write_samples
from visionzoo.serve.services import ClassifyService, ClipService
from visionzoo.weights.local import local_source

if TYPE_CHECKING:
    from visionzoo.inference.sam_predictor import SamPredictor
    from visionzoo.models.sam.text_prompts import TextPrompts
    from visionzoo.serve.segmenting import SegmentService


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What a server is made of."""

    classify: str = "embedded"
    clip: str = "embedded"
    segment: str = "embedded"
    weights: str | None = None  #: of ``segment`` or ``clip``, where that is a name
    folder: str | None = None  #: None for pictures of ours in a temporary one
    out: str | None = None  #: annotations; None for a file in the folder
    first: tuple[str, ...] = ()  #: pictures of the folder to begin with
    device: str | torch.device | None = None
    bounds: Bounds = field(default_factory=Bounds)


class Demo:
    """The models, ready to answer. Close it when it is no longer used."""

    def __init__(self, options: DemoOptions) -> None:
        """
        Raises:
            FileNotFoundError, ValueError: for a model or folder that is not there, or is of another kind.
        """
        self.options, self.bounds = options, options.bounds
        self.metrics = ServerMetrics()
        self.store = PictureStore(self.bounds)
        self.metrics.watch_pictures(lambda: len(self.store))
        self._batchers: list[Batcher] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="visionzoo-demo-") if options.folder is None else None
        if self._temporary is not None:
            write_samples(self._temporary.name)
        self.folder = PictureFolder(options.folder or self._own_folder, self.bounds.body, options.first)
        self.annotations = Annotations(options.out or Path(self.folder.path) / FILE)
        source, labeller = _labeller(options)
        self.classify = ClassifyService(labeller, self._make)
        self.confusion = Confusion(source, exported=is_exported(source), multi_label=labeller.multi_label)
        self.clip = self._clip_service()
        cache = None if self._temporary is None else Path(self._temporary.name) / ".cache"
        self._search = ImageSearch(self.clip.model, cache_dir=cache)
        self._searches = self._make("search", self._find, batch=1)
        self.segment_name = options.segment
        self._loading = threading.Lock()
        self._segment: SegmentService | None = None
        if options.segment != "embedded":  # what a person names is wrong at once, and not at the first click
            self._segment = self._segmenter(options.segment, options.weights)

    @property
    def _own_folder(self) -> str:
        assert self._temporary is not None
        return self._temporary.name

    @property
    def has_own_pictures(self) -> bool:
        """Whether the folder is one of ours, which goes when the server stops."""
        return self._temporary is not None

    def _make(self, name: str, run: Any, batch: int | None = None) -> Batcher:
        """A line of its own for a model, within the bounds."""
        made = Batcher(
            name,
            run,
            batch=batch or self.bounds.batch,
            waiting=self.bounds.waiting,
            seconds=self.bounds.seconds,
            saw_batch=self.metrics.saw_batch,
        )
        self.metrics.watch_queue(name, lambda: made.depth)
        self._batchers.append(made)
        return made

    def _clip_service(self) -> ClipService:
        source = local_source(self.options.clip, "clip")
        if not is_exported(source):
            model, labels = load_clip(source, self.options.device)
            return ClipService(model, labels or SHAPE_LABELS, self.bounds, self._make)
        from visionzoo.export.clip_model import ExportedClip
        from visionzoo.export.predictors import ExportedTowers, ExportedZeroShot, load_exported
        from visionzoo.serve.fixed_labels import FixedLabelsService

        found = load_exported(source)
        if isinstance(found, ExportedZeroShot):
            return FixedLabelsService(ExportedClip(source, found), found, self.bounds, self._make)
        if not isinstance(found, ExportedTowers):
            raise ValueError(
                f"--clip {source} is an exported {type(found).__name__}, which reads no texts; export it with "
                "--part clip for labels that are typed in, or with --labels for labels that stay"
            )
        exported: Any = ExportedClip(source, found)
        return ClipService(exported, SHAPE_LABELS, self.bounds, self._make)

    def _segmenter(self, source: str, weights: str | None) -> SegmentService:
        from visionzoo.serve.segmenting import SegmentService

        predictor, texts = _predictor(source, weights, self.options.device)
        return SegmentService(predictor, texts, self.store, self.bounds, self._make)

    @property
    def segment(self) -> SegmentService:
        """The segmenter. Ours is loaded by the first who wants it: timm takes longer to import than all the rest."""
        with self._loading:
            if self._segment is None:
                self._segment = self._segmenter(self.options.segment, self.options.weights)
            return self._segment

    async def segmenter(self) -> SegmentService:
        """:attr:`segment`, while others are answered."""
        return self._segment if self._segment is not None else await asyncio.to_thread(lambda: self.segment)

    @property
    def segment_abilities(self) -> dict[str, bool]:
        """What the page may offer, known before the segmenter is loaded: ``text``."""
        return {"text": bool(self._segment and self._segment.texts)}

    @property
    def retrained(self) -> Path:
        """Where the page says that a segmenter is to be trained from what was drawn."""
        return Path("runs") / f"demo-{Path(self.folder.root).name}"

    async def reload(self) -> str:
        """Take the newest run that :attr:`retrained` names in the place of the segmenter; gives its name.

        Raises:
            Refused: 404 where there is none that has ended.
        """
        named = re.compile(re.escape(self.retrained.name) + r"(-\d+)?")  # the second and third have a number
        found = self.retrained.parent.glob("*/model.safetensors")
        runs = (path for path in found if named.fullmatch(path.parent.name))
        newest = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise Refused(404, f"there is no finished run {self.retrained} yet; the command above makes it")
        before = self._segment
        self._segment = await asyncio.to_thread(self._segmenter, str(newest.parent), None)
        self.segment_name = str(newest.parent)
        self.store.forget_embeddings()
        for line in before.lines if before is not None else ():
            self._batchers.remove(line)
            await asyncio.to_thread(line.close)
        return self.segment_name

    async def find(self, query: str | bytes, top: int) -> list[dict[str, Any]]:
        """The pictures of the folder that fit words, or are like a picture: ``index``, ``name`` and ``score``.

        Raises:
            ValueError: for an empty description, or one where the CLIP reads none.
        """
        if isinstance(query, str) and not self.clip.takes_texts:
            await self.clip.embed_texts([query], None)
        found: list[dict[str, Any]] = await self._searches.ask((query, top))
        return found

    def _find(self, asked: list[tuple[str | bytes, int]]) -> list[list[dict[str, Any]]]:
        """In one thread. What lies outside of the folder, behind a link, may be found and is not named."""
        if not self._search.folder:
            self._search.index(self.folder.path)
        results = []
        for query, top in asked:
            most = len(self._search.paths)
            matches = (
                self._search.find(query, most) if isinstance(query, str) else self._search.find_like(query, most)[0]
            )
            placed = [(self.folder.place(match.path), match.score) for match in matches]
            results.append(
                [{"index": i, "name": self.folder.names[i], "score": round(s, 4)} for i, s in placed if i is not None][
                    :top
                ]
            )
        return results

    def close(self) -> None:
        """Let go of threads and temporary files."""
        for batcher in self._batchers:
            batcher.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def _labeller(options: DemoOptions) -> tuple[str, ImageLabeller]:
    """Its folder, and the classifier."""
    source = local_source(options.classify, "classify")
    if not is_exported(source):
        return source, ImageClassifier.load(source, options.device)
    from visionzoo.export.predictors import ExportedClassifier, load_exported

    found = load_exported(source)
    if not isinstance(found, ExportedClassifier):
        raise ValueError(f"--classify {source} is an exported {type(found).__name__}, which names no images")
    return source, found


def _predictor(source: str, weights: str | None, device: Any) -> tuple[SamPredictor, TextPrompts | None]:
    from visionzoo.export.predictors import load_exported
    from visionzoo.inference.masks import load_sam, load_text_prompts
    from visionzoo.inference.sam_predictor import SamPredictor

    source = local_source(source, "segment")
    if is_exported(source):
        found = load_exported(source)
        if not isinstance(found, SamPredictor):
            raise ValueError(f"--segment {source} is an exported {type(found).__name__}, which gives no masks")
        return found, None
    model = load_sam(source, weights=weights, device=device)
    takes_names = Path(source).is_dir() and read_config(source).architecture.get("text_dim") is not None
    return SamPredictor(model), load_text_prompts(source) if takes_names else None
