"""A part to an ONNX file, and what runs one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionzoo.export.failure import cannot_export
from visionzoo.export.parts import Feed, GraphPart

#: The newest whose every operator that we use has a kernel in the oldest ONNX Runtime of the extra.
OPSET = 23
#: Weights of more bytes lie beside the graph: a protobuf file ends at two gigabytes.
LARGEST_FILE = 1_900_000_000


def export_onnx(part: GraphPart, example: Feed, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the graph of a part.

    Args:
        part: what is exported.
        example: inputs that it is traced with; its batch and open sizes are not those of the graph.
        path: ``*.onnx``.
        metadata: texts that the file carries.

    Raises:
        ValueError: naming the operator that torch's exporter does not know, or what else it stopped at.
    """
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in part.open_sizes)
    try:
        with torch.no_grad(), quiet_exporters():
            program = torch.onnx.export(
                part.module,
                example.inputs,
                dynamo=True,
                dynamic_shapes=(shapes,) if _takes_any(part.module) else shapes,
                input_names=[port.name for port in part.inputs],
                output_names=[port.name for port in part.outputs],
                opset_version=OPSET,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise cannot_export(part.name, error, open_size=part.has_open_size) from error
    assert program is not None
    _name_sizes(program.model, part)
    program.model.metadata_props.update(metadata)
    program.model.producer_name, program.model.doc_string = "visionzoo", metadata.get("description", "")
    weights = sum(t.numel() * t.element_size() for t in part.module.state_dict().values())
    program.save(str(path), external_data=weights > LARGEST_FILE)


def _takes_any(module: torch.nn.Module) -> bool:
    """Whether ``forward`` gathers its inputs by a star, which torch's exporter counts as one."""
    return bool(module.forward.__code__.co_flags & 4)


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Without what the exporter says of itself; its errors are raised."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _name_sizes(model: Any, part: GraphPart) -> None:
    """Give open sizes the names that the part has for them, in place of the exporter's."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value, port in zip(model.graph.inputs, part.inputs, strict=True):
        for size, own in zip(value.shape, port.shape, strict=True):
            if isinstance(own, str) and isinstance(size, ir.SymbolicDim):
                names[str(size.value)] = own
    for value, port in zip(model.graph.outputs, part.outputs, strict=True):
        value.shape = ir.Shape(port.shape)
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        if value.shape is not None and value not in model.graph.outputs:
            sizes = [names.get(str(s.value), s.value) if isinstance(s, ir.SymbolicDim) else s for s in value.shape]
            value.shape = ir.Shape(sizes)


class OnnxRunner:
    """Runs an ONNX file on the CPU: numpy arrays in and out. Threads may share one.

    Args:
        path: of the file.
        threads: of the CPU; 0 for the runtime's own choice.

    Raises:
        ValueError: for a file that ONNX Runtime cannot read.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class of their own
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} cannot be run by ONNX Runtime {onnxruntime.__version__}: {reason}") from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, *arrays: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
        """Inputs in the graph's order -> outputs, all or those that are named. Arrays are of the shapes of its ports.

        Raises:
            ValueError: for what the runtime refuses.
        """
        feed = dict(zip(self.inputs, arrays, strict=True))
        try:
            return self.session.run(outputs, feed)
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:300]
            shapes = [array.shape for array in arrays]
            raise ValueError(
                f"the exported graph cannot run on {shapes}: {reason}; where its sizes are open, --fixed-size asks less"
            ) from error
