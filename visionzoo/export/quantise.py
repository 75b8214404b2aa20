"""An ONNX file in 8-bit integers: calibrated on the user's pictures, judged by its answers.

Legend: B batch, C channels, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from visionzoo.export.failure import NotTheSame
from visionzoo.export.half import node_cosines
from visionzoo.export.parts import Feed, GraphPart
from visionzoo.export.proof import Proof, prove
from visionzoo.export.to_onnx import OnnxRunner, quiet_exporters

#: How ranges are chosen of what calibration saw, by the names that ONNX Runtime has for them.
METHODS = ("Entropy", "Percentile")
#: Top-1 that may be lost on labelled pictures, as a share of them.
MOST_LOST = 0.005
#: Without labels: the least mean cosine of an output.
ENOUGH = 0.99
#: Where no labels judge a file, one of less than this is refused.
LEAST = 0.95
#: Rounds in which the worst layers are taken back to float32, and the share of them each time.
ROUNDS, SHARE = 3, 0.1
#: A file to its top-1 on labelled pictures, and their number.
Accuracy = Callable[[OnnxRunner], tuple[float, int]]
_QUANTISED = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Quantised:
    """What came of it."""

    proof: Proof
    method: str
    kept: tuple[str, ...]  #: layers in float32
    accuracy: tuple[float, float] | None  #: on labelled pictures, before and after
    labelled: int  #: how many of them


def to_int8(
    path: Path,
    part: GraphPart,
    calibration: Sequence[np.ndarray],
    images: Sequence[Image.Image],
    accuracy: Accuracy | None,
) -> Quantised:
    """Turn a float32 file into 8-bit integers in place, weights by channel (static QDQ).

    Args:
        path: of the file.
        part: what it was made of; it has one input.
        calibration: pictures (1, C, H, W) uint8.
        images: to compare on.
        accuracy: of a file on labelled pictures, and their number; None where there are none.

    Raises:
        NotTheSame: where accuracy is lost, or without labels the cosine is low, however many layers are kept.
    """
    before, labelled = (None, 0) if accuracy is None else accuracy(OnnxRunner(path))
    files = {method: path.with_name(f"{path.stem}.{method}.onnx") for method in METHODS}
    kept: tuple[str, ...] = ()

    def judged(method: str) -> tuple[float, Proof]:
        """How much better than it must be the file is, by labels or else by cosine; and its proof."""
        _quantise(path, files[method], part.inputs[0].name, calibration, method, kept)
        runner = OnnxRunner(files[method])
        proof = prove(part, runner, images)
        if accuracy is None or before is None:
            return float(np.min([row.cosine for row in proof.rows])) - ENOUGH, proof  # NaN where any is
        return accuracy(runner)[0] - before + MOST_LOST, proof

    try:
        found = {method: judged(method) for method in METHODS}
        method = max(found, key=lambda name: np.nan_to_num(found[name][0], nan=-np.inf))
        margin, proof = found[method]
        for _ in range(ROUNDS):
            if margin >= 0:
                break
            kept += _worst(path, files[method], next(iter(part.feeds(images))), kept)
            margin, proof = judged(method)
        if before is None and not margin >= LEAST - ENOUGH:
            raise NotTheSame(
                f"int8 has cosine {margin + ENOUGH:.4f} with PyTorch's outputs, with {len(kept)} layers in fp32; "
                f"{LEAST} is needed where no labels judge it: use --precision fp16"
            )
        if before is not None and not margin >= 0:
            raise NotTheSame(
                f"int8 loses {100 * (MOST_LOST - margin):.2f} points of top-1 on {labelled} labelled pictures, with "
                f"{len(kept)} layers in fp32; {100 * MOST_LOST:g} are allowed: use --precision fp16"
            )
        files[method].replace(path)
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
    pair = None if before is None else (before, before + margin - MOST_LOST)
    return Quantised(proof, method, kept, pair, labelled)


def _quantise(
    path: Path, low: Path, name: str, calibration: Sequence[np.ndarray], method: str, kept: Sequence[str]
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        """One at a time."""

        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(self.left, None)
            return None if pixels is None else {name: pixels}

    with quiet_exporters():
        quantize_static(
            path,
            low,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # processors without VNNI add two products in 16 bits, which 8-bit weights overflow
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=list(kept),
        )


def _worst(path: Path, low: Path, feed: Feed, kept: Sequence[str]) -> tuple[str, ...]:
    """The layers that lose most between their input and their output."""
    import onnx

    layers = {node.name for node in onnx.load(path).graph.node if node.op_type in _QUANTISED} - set(kept)
    losses: list[tuple[float, str]] = []
    last = 1.0
    for name, cosine in node_cosines(path, low, feed):
        if name in layers:
            losses.append((cosine - last, name))
        last = cosine
    return tuple(name for _, name in sorted(losses)[: max(1, int(SHARE * len(layers)))])
