"""Find images by a description, or by another image.

Legend: N images, Q queries, E embedding.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visionzoo.cache import Cache, packed
from visionzoo.data.images import open_image
from visionzoo.data.sources.base import printable
from visionzoo.data.sources.folder import list_images, not_read, warn_not_read
from visionzoo.files import refuse_address
from visionzoo.inference.classifier import Images, describe_unreadable, expand, name_of, pixels_of
from visionzoo.inference.device import as_input, own_precision, resolve_device
from visionzoo.inference.load_clip import load_clip
from visionzoo.inference.locks import Lock
from visionzoo.inference.stream import Stream, Unreadable
from visionzoo.inference.text_cache import TextCache
from visionzoo.models.clip import Clip
from visionzoo.weights.fingerprint import model_fingerprint

#: New images between two writes of the index: what is lost at most when the first indexing is broken off.
ROUND = 2048


class Match(NamedTuple):
    """One image that was found."""

    path: str  #: as ``open`` takes it
    score: float  #: cosine of its embedding and the query's, in [-1, 1]


class IndexReport(NamedTuple):
    """What :meth:`ImageSearch.index` did."""

    images: int  #: that can be found
    encoded: int  #: of these, new ones and changed ones
    dropped: int  #: images of an earlier index that are gone
    unreadable: list[Unreadable]  #: files that are no images, by position among all files


class _Index(NamedTuple):
    """Names relative to the folder, (N, 2) int64 sizes and times of change, and (N, E) embeddings, in one order."""

    names: list[bytes]
    state: Tensor
    features: Tensor

    def take(self, places: list[int]) -> _Index:
        return _Index([self.names[i] for i in places], self.state[places], self.features[places])


class _HeldIndex(NamedTuple):
    """What is searched, swapped whole: a find never mixes two folders."""

    folder: str
    found: _Index
    report: IndexReport

    def paths(self) -> list[str]:
        return [os.path.join(self.folder, os.fsdecode(name)) for name in self.found.names]


def _empty(width: int) -> _Index:
    return _Index([], torch.empty(0, 2, dtype=torch.long), torch.empty(0, width))


class ImageSearch:
    """The images of a folder, by what is in them.

    Threads may share one: folders are indexed one call at a time, and until that is done others search what was there.

    >>> search = ImageSearch.load("runs/clip").index("photos")          # doctest: +SKIP
    >>> search.find("a red car", top_k=3)                               # doctest: +SKIP
    """

    def __init__(
        self,
        model: Clip,
        *,
        cache_dir: str | Path | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        """
        Args:
            model: from :func:`visionzoo.create_clip`; it is put in eval mode.
            cache_dir: where embeddings are kept between processes; None for ``$XDG_CACHE_HOME/visionzoo/search``.
            batch_size: images sent through the model at a time.
            device: where the model goes; None leaves it where it is.

        Raises:
            ValueError: for another model.
        """
        if not (hasattr(model, "encode_text") and hasattr(model, "takes_pixels")):  # an exported one has them too
            raise ValueError(f"a search needs a model of create_clip, not {type(model).__name__}")
        self.model = model.eval() if device is None else model.eval().to(resolve_device(device))
        self.device = self.model.logit_scale.device
        self.batch_size = batch_size
        self._cache = Cache("search", cache_dir)
        self._lock = Lock()
        self._held = _HeldIndex("", _empty(model.embed_dim), IndexReport(0, 0, 0, []))
        self._stream = Stream(self._encode, model.preprocess, self.device, raw=model.takes_pixels)
        self._texts = TextCache(self.model, ("{}",), None, 256)

    @classmethod
    def load(
        cls, source: str | Path, *, cache_dir: str | Path | None = None, device: str | torch.device | None = None
    ) -> ImageSearch:
        """A search with a model from anywhere; source, device and errors are those of
        :func:`visionzoo.inference.load_clip.load_clip`."""
        return cls(load_clip(source, device)[0], cache_dir=cache_dir)

    def __repr__(self) -> str:
        now = self._held
        held = f"{len(now.found.names)} images of {now.folder}" if now.folder else "nothing indexed"
        return f"ImageSearch({self.model.name}; {held}; {pixels_of(self.model.image_size)}; {self.device})"

    def index(self, folder: str | Path) -> ImageSearch:
        """Take in the images below a folder; ``report`` says what was done. Returns itself.

        Embeddings are kept on the disk, one entry for each folder and model. Only files that are new, or whose size or
        time of change is another than then, are encoded; files that are gone are dropped. An indexing that is broken
        off goes on where it was.

        Raises:
            FileNotFoundError: for a folder that does not exist.
            ValueError: for a folder without images.
        """
        with self._lock:
            self._held = self._indexed(os.fspath(folder))
        return self

    def _indexed(self, root: str) -> _HeldIndex:
        if not os.path.isdir(root):
            refuse_address(root)
            raise FileNotFoundError(f"there is no folder {root}")
        names, others = list_images(root)
        if not names:
            raise ValueError(f"no images in {root} ({not_read(0, others) or f'{others.total()} other files'})")
        warn_not_read(root, len(names), others)
        key = self._model_hash, os.fsencode(os.path.realpath(root))
        old = self._read(*key)
        state = [_state(root, name) for name in names]
        before = old.state.tolist()
        place = {name: i for i, name in enumerate(old.names)}
        kept = [(i, j) for i, n in enumerate(names) if (j := place.get(n)) is not None and state[i] == before[j]]
        index = old.take([j for _, j in kept])
        known = {i for i, _ in kept}
        todo = [i for i in range(len(names)) if i not in known]
        unreadable: list[Unreadable] = []
        for start in range(0, len(todo), ROUND):
            some = todo[start : start + ROUND]
            try:
                index, bad = self._extend(index, root, [names[i] for i in some], [state[i] for i in some])
            except KeyboardInterrupt:
                done = f"stopped. {len(index.names):,} of {len(names):,} images are kept"
                raise KeyboardInterrupt(f"{done}: go on with the same command") from None
            unreadable += [b._replace(position=some[b.position]) for b in bad]
            self._write(index, *key)
        dropped = len(set(old.names) - set(names))
        if dropped and not todo:
            self._write(index, *key)
        index = index.take(sorted(range(len(index.names)), key=index.names.__getitem__))
        return _HeldIndex(root, index, IndexReport(len(index.names), len(todo) - len(unreadable), dropped, unreadable))

    @property
    def folder(self) -> str:
        """What was indexed last; empty before that."""
        return self._held.folder

    @property
    def report(self) -> IndexReport:
        """What the last :meth:`index` did."""
        return self._held.report

    @property
    def paths(self) -> list[str]:
        """The images that can be found, sorted."""
        return self._held.paths()

    def find(self, query: str, top_k: int = 12) -> list[Match]:
        """The images that fit a description best, best first.

        Raises:
            ValueError: for an empty description, ``top_k`` below 1, or before anything was indexed.
        """
        return self.find_all([query], top_k)[0]

    def find_all(self, queries: Sequence[str], top_k: int = 12) -> list[list[Match]]:
        """:meth:`find` for several descriptions."""
        if empty := [i for i, query in enumerate(queries) if not query.strip()]:
            raise ValueError(f"query {empty[0]} is empty; describe what to look for")
        return self._best(self._texts.embed(list(queries)).cpu() if queries else torch.empty(0, 1), top_k)

    def find_like(self, images: Images, top_k: int = 12) -> list[list[Match]]:
        """The most similar images for each of the given ones, which may be anything that
        :class:`visionzoo.ImageClassifier` takes; one that lies in the folder finds itself first.

        Raises:
            ValueError: for an image that cannot be read, naming it; and as :meth:`find`.
        """
        items = expand(images)
        read, name = (lambda i: open_image(items[i])), (lambda i: name_of(items[i], i))
        outputs = list(self._stream.run(len(items), read, name, self.batch_size))
        if bad := [u for output in outputs for u in output.unreadable]:
            raise ValueError(describe_unreadable(bad, len(items)))
        return self._best(torch.cat([output.values for output in outputs]), top_k)

    def _best(self, queries: Tensor, top_k: int) -> list[list[Match]]:
        """(Q, E) of length one -> the best of each."""
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        held = self._held
        if not held.found.names:
            raise ValueError("there is nothing to search; call index(folder) with a folder of images first")
        paths, found = held.paths(), []
        for query in queries:
            scores, places = (held.found.features @ query).topk(min(top_k, len(paths)))
            found.append([Match(paths[i], s) for i, s in zip(places.tolist(), scores.tolist(), strict=True)])
        return found

    def _encode(self, images: Tensor) -> Tensor:
        with own_precision(self.model):
            return F.normalize(self.model.encode_image(as_input(images, self.model.visual)).float(), dim=-1)

    def _extend(
        self, index: _Index, root: str, names: list[bytes], state: list[list[int]]
    ) -> tuple[_Index, list[Unreadable]]:
        """The index with some more images, and those that could not be read."""
        paths = [os.path.join(root, os.fsdecode(name)) for name in names]
        places: list[int] = []
        rows: list[Tensor] = [index.features]
        unreadable: list[Unreadable] = []
        read, name = (lambda i: open_image(paths[i])), (lambda i: printable(paths[i]))
        for output in self._stream.run(len(paths), read, name, self.batch_size, "indexing"):
            unreadable += output.unreadable
            places += output.positions
            if output.positions:
                rows.append(output.values)
        new = torch.tensor([state[i] for i in places], dtype=torch.long).reshape(-1, 2)
        more = [*index.names, *(names[i] for i in places)]
        return _Index(more, torch.cat((index.state, new)), torch.cat(rows)), unreadable

    # The entry in the cache.

    @functools.cached_property
    def _model_hash(self) -> str:
        return model_fingerprint(self.model.visual, preprocess=self.model.preprocess, context="search")

    def _read(self, *key: str | bytes) -> _Index:
        if (stored := self._cache.read(*key)) is None:
            return _empty(self.model.embed_dim)
        blob = stored["names"].numpy().tobytes()
        return _Index(blob.split(b"\0") if blob else [], stored["state"], stored["features"])

    def _write(self, index: _Index, *key: str | bytes) -> None:
        names = packed(b"\0".join(index.names))
        self._cache.write({"names": names, "state": index.state, "features": index.features}, *key)


def _state(root: str, name: bytes) -> list[int]:
    """Size and time of the last change; of a link that leads nowhere nothing, so that reading says what is wrong."""
    try:
        status = os.stat(os.path.join(os.fsencode(root), name))
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def search_sheet(results: Sequence[tuple[str, Sequence[Match]]], out: str | Path) -> Path:
    """Draw what was found as a contact sheet: for each query a line of images with scores and names.

    Args:
        results: (query, matches) for each query.
        out: where the picture goes; the suffix chooses the format.
    """
    from visionzoo.viz.sheets import contact_sheet

    images, captions = [], []
    for query, matches in results:
        for match in matches:
            images.append(open_image(match.path))
            lines = [f"{match.score:.3f}  {os.path.basename(printable(match.path))}"]
            captions.append(lines if len(results) == 1 else [query, *lines])
    widest = max((len(matches) for _, matches in results), default=1)
    columns = None if len(results) == 1 else min(widest, 8)
    title = results[0][0] if len(results) == 1 else f"{len(results)} queries"
    return contact_sheet(images, captions, out, title=title, note="best first, with the cosine", columns=columns)
