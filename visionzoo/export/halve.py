"""The arithmetic of an ONNX graph in float16, but for nodes that are named.

ONNX Runtime's own converter stores the weights of such nodes in float16 all the same, and rounds what passes between
two of them; here they are in float32 throughout.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

#: Operators that want float32 for some input, or lose places of pixels in half precision.
_ALWAYS_FLOAT = ("Resize", "Range", "GridSample", "RandomNormal", "RandomUniform", "Constant", "ConstantOfShape")


def halved(model: Any, kept: Collection[str]) -> Any:
    """A copy of an ``onnx.ModelProto`` whose nodes compute in float16; the graph's inputs and outputs keep their types.

    Args:
        model: float32, with the types of its values, as torch's exporter writes them.
        kept: names of nodes that compute in float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    full, half = TensorProto.FLOAT, TensorProto.FLOAT16
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    known = [*graph.input, *graph.output, *onnx.shape_inference.infer_shapes(model).graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    weights = {weight.name: weight for weight in graph.initializer}
    types |= {name: weight.data_type for name, weight in weights.items()}
    floats = {name for name, kind in types.items() if kind == full}
    outputs = {output.name for output in graph.output}
    now = dict.fromkeys(floats, full)  # what each value is in the copy
    for node in graph.node:
        stays = node.op_type in _ALWAYS_FLOAT or node.name in kept
        now |= {name: full if stays or name in outputs else half for name in node.output if name in floats}
    read_as: dict[str, set[int]] = {}
    nodes: list[Any] = []
    cast: set[tuple[str, int]] = set()

    def as_type(name: str, kind: int) -> str:
        """The name of a value in a type; where it is of another, a cast comes before its first reader."""
        if name in weights:
            read_as.setdefault(name, set()).add(kind)
            return name if kind == full else f"{name}.fp16"
        if now[name] == kind:
            return name
        other = f"{name}.{'fp32' if kind == full else 'fp16'}"
        if (name, kind) not in cast:
            cast.add((name, kind))
            nodes.append(helper.make_node("Cast", [name], [other], name=f"{other}_cast", to=kind))
        return other

    for node in graph.node:
        kind = full if node.op_type in _ALWAYS_FLOAT or node.name in kept else half
        for i, name in enumerate(node.input):
            if name in floats:
                node.input[i] = as_type(name, kind)
        after = []
        for i, name in enumerate(node.output):
            if name in outputs and name in floats and kind == half:  # the graph's own outputs are in float32
                node.output[i] = f"{name}.fp16"
                cast.add((name, half))
                after.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}_cast", to=full))
        if node.op_type == "Cast" and kind == half:
            for attribute in node.attribute:
                attribute.i = half if attribute.name == "to" and attribute.i == full else attribute.i
        nodes += [node, *after]
    for name, kinds in read_as.items():
        if half in kinds:
            with np.errstate(over="ignore"):  # what does not fit departs, and is found
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(values, f"{name}.fp16"))
    unread = {name for name, kinds in read_as.items() if full not in kinds}
    initializers = [weight for weight in graph.initializer if weight.name not in unread]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for old, new in ((graph.node, fresh), (graph.initializer, initializers)):
        held = [type(item).FromString(item.SerializeToString()) for item in new]
        del old[:]
        old.extend(held)
    del graph.value_info[:]
    return copy
