"""What is exported: a plan of one or more parts, each a graph with named inputs and outputs.

Legend: B batch, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor, nn

from visionzoo.types import Preprocess


class Port(NamedTuple):
    """One input or output of a graph."""

    name: str
    dtype: str  #: numpy's word: ``uint8``, ``float32``, ``int64``, ``bool``
    shape: tuple[str | int, ...]  #: a name stands for a size that is open; equal names are equal sizes
    meaning: str  #: one line, with its range

    def described(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self._asdict(), "shape": list(self.shape)}


class Feed(NamedTuple):
    """Inputs to compare a graph with PyTorch on."""

    size: str  #: what they are, in words
    batch: int
    inputs: tuple[Tensor, ...]  #: in the order of the part's inputs


#: Pictures to the inputs of a part, one after another. The first has a batch above 1, and is what the graph is made of.
Feeds = Callable[[Sequence[Image.Image]], Iterator[Feed]]


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """One graph, which becomes one file."""

    name: str  #: of the file
    module: nn.Module  #: what PyTorch computes, in eval mode
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    feeds: Feeds
    #: output -> whether its largest value of each row is an answer, which must stay the same
    ranked: tuple[str, ...] = ()

    @property
    def open_sizes(self) -> tuple[dict[int, str], ...]:
        """For each input its open axes and their names."""
        return tuple({i: n for i, n in enumerate(port.shape) if isinstance(n, str)} for port in self.inputs)

    @property
    def has_open_size(self) -> bool:
        """Whether height and width of its pictures are open."""
        return any("height" in axes.values() for axes in self.open_sizes)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All parts of a model, and what a program must know to feed them."""

    kind: str  #: a key of :data:`KINDS`
    name: str  #: of the model, for people
    backbone: str
    parts: tuple[GraphPart, ...]
    preprocess: Preprocess
    facts: Mapping[str, Any] = field(default_factory=dict)  #: JSON types: labels, temperature, ...
    notes: tuple[str, ...] = ()  #: what a person should know of it


#: kind -> what it is, in words
KINDS = {
    "classifier": "names what is in images",
    "zero-shot": "names what is in images, with labels that were given as texts",
    "features": "gives the features of images",
    "pyramid": "gives feature maps of images at several strides",
    "clip": "gives embeddings of images and of texts in one space",
    "sam": "segments what is clicked on",
}
