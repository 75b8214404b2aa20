"""An ONNX file in half precision: nodes that it is too coarse for are found, and stay in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionzoo.export.failure import NotTheSame
from visionzoo.export.halve import halved
from visionzoo.export.parts import Feed, GraphPart
from visionzoo.export.proof import LEAST_COSINE, Proof, prove
from visionzoo.export.to_onnx import OnnxRunner

#: Nodes that may be kept, one after another; a network that needs more is no case for half precision.
MOST_KEPT = 24


def to_fp16(path: Path, part: GraphPart, images: Sequence[Image.Image]) -> tuple[Proof, list[str]]:
    """Turn a float32 file into float16 in place; its inputs and outputs keep their types.

    Args:
        path: of the file.
        part: what it was made of.
        images: real ones, to compare on.

    Returns:
        the proof, and the nodes that were kept in float32.

    Raises:
        NotTheSame: where too many nodes would have to be kept.
    """
    import onnx

    kept: list[str] = []
    low = path.with_name(f"{path.stem}.fp16.onnx")
    feed = next(iter(part.feeds(images)))
    while True:
        onnx.save(halved(onnx.load(path), kept), low)
        proof = prove(part, OnnxRunner(low), images)
        if all(row.cosine >= LEAST_COSINE for row in proof.rows):
            low.replace(path)
            return proof, kept
        found = first_departure(path, low, feed, LEAST_COSINE, kept)
        if found is None or len(kept) >= MOST_KEPT:
            low.unlink()
            proof.require("fp16")
            raise NotTheSame(f"{part.name}: {len(kept)} nodes in fp32 do not suffice")
        kept.append(found)


def first_departure(reference: Path, other: Path, feed: Feed, least: float, known: Sequence[str] = ()) -> str | None:
    """The first node whose output has a cosine below ``least`` with the reference's; None where none has.

    Args:
        reference: a float32 file.
        other: made of it, with the names of its values.
        feed: inputs of both.
        least: cosine.
        known: names of nodes that are passed over.
    """
    return next(
        (name for name, c in node_cosines(reference, other, feed) if not c >= least and name not in known), None
    )


def node_cosines(reference: Path, other: Path, feed: Feed) -> list[tuple[str, float]]:
    """(name, cosine with the reference) of every node that both files have, in the order of the reference."""
    import onnx

    model, changed = onnx.load(reference), onnx.load(other)
    theirs = {name for node in changed.graph.node for name in node.output}
    nodes = [(n.name, n.output[0]) for n in model.graph.node if n.output[0] in theirs]
    wanted, given = (_values(m, [value for _, value in nodes], feed) for m in (model, changed))
    found = []
    for name, value in nodes:
        a, b = wanted.get(value), given.get(value)
        if a is not None and b is not None and a.dtype.kind == "f" and a.shape == b.shape:
            x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            norm = np.linalg.norm(x) * np.linalg.norm(y)
            if not np.isfinite(norm):
                found.append((name, 0.0))
            else:
                found.append((name, float(x @ y / norm) if norm > 0 else float((x == y).all())))
    return found


def _values(model: Any, names: list[str], feed: Feed) -> dict[str, np.ndarray]:
    """What the named values are for a feed."""
    import onnx
    import onnxruntime

    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # as it is: a fused node has no values in between
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = {i.name: x.numpy() for i, x in zip(session.get_inputs(), feed.inputs, strict=True)}
    return dict(zip(names, session.run(names, arrays), strict=True))
