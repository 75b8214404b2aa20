"""A part to a file of torch's own: ``torch.export``'s ``.pt2``, or a package of machine code by AOTInductor.

Both are for programs with torch and without visionzoo, in Python or C++.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visionzoo.export.failure import cannot_export
from visionzoo.export.graphs import ZeroShotGraph
from visionzoo.export.parts import Feed, GraphPart
from visionzoo.export.proof import Run
from visionzoo.export.sam_parts import SamEncoderGraph
from visionzoo.export.to_onnx import quiet_exporters
from visionzoo.models.preprocess import Normalize

#: Precisions that such a file can have.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Whose own buffers stay in float32: pixels are normalised, and embeddings compared, exactly.
_EXACT = (Normalize, ZeroShotGraph, SamEncoderGraph)
#: Guards that a general way was taken.
_GENERAL = re.compile(r" != | > 1$")
METADATA = "visionzoo.json"  #: in a ``.pt2``, what ``extra_files`` of torch.export.load gives


def export_torch(
    part: GraphPart, example: Feed, path: Path, metadata: Mapping[str, str], precision: str, *, compiled: bool
) -> Run:
    """Write the graph of a part, and give what runs the file.

    Args:
        part: what is exported.
        example: inputs that it is traced with.
        path: ``*.pt2``.
        metadata: texts that the file carries.
        precision: of the network between pixels and answers.
        compiled: machine code of this machine (AOTInductor), which wants a C++ compiler, rather than a graph.

    Raises:
        ValueError: naming the operator that torch's exporter does not know, or what else it stopped at.
    """
    module = in_precision(part.module, DTYPES[precision])
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in part.open_sizes)
    inductor: Any = torch._inductor
    try:
        with torch.no_grad(), quiet_exporters(), _no_size_is_special():
            program = torch.export.export(module, example.inputs, dynamic_shapes=shapes, strict=False)
            _forget_other_ways(program)
            if compiled:
                inductor.aoti_compile_and_package(program, package_path=str(path))
            else:
                torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata))})
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise cannot_export(part.name, error, open_size=part.has_open_size) from error
    loaded = inductor.aoti_load_package(str(path)) if compiled else torch.export.load(path).module()

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            found = loaded(*map(torch.from_numpy, arrays))
        return [x.float().numpy() for x in ((found,) if isinstance(found, torch.Tensor) else found)]

    return run


def _no_size_is_special() -> AbstractContextManager[None]:
    """Trace what holds for any size, also where that of the example is 1: a row of one window, a batch of one."""
    config: Any = torch.fx.experimental._config
    patched: AbstractContextManager[None] = config.patch(backed_size_oblivious=True)
    return patched


def _forget_other_ways(program: torch.export.ExportedProgram) -> None:
    """Take ``a != b`` and ``a > 1`` from what the file checks of its inputs.

    Such a guard says that the tracer took the general way and not a short cut for special sizes. The general way is
    right for these as well, and the model's own size is often one of them. Guards of other kinds stay.
    """
    if hasattr(program, "_guards_code"):  # from torch 2.9 on
        program._guards_code = [guard for guard in program._guards_code if not _GENERAL.search(guard)]


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a part's module whose network is in another precision."""
    lowered = copy.deepcopy(module).to(dtype).eval()
    for ours, theirs in zip(module.modules(), lowered.modules(), strict=True):
        if isinstance(ours, _EXACT):
            for name, values in ours.named_buffers(recurse=False):
                setattr(theirs, name, values.clone())
    return lowered
