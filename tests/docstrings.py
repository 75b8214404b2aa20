"""Which public functions say what they take and give.

    python tests/docstrings.py

lists those that say nothing, and those with tensors that say no shapes. ``tests/test_docstrings.py`` holds the bar.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "visionzoo"
INNER = r"(?:[^()]|\([^()]*\))*"
#: An axis is a letter of the file's legend, a number, a sum or product of them as in ``((2 s - 1)^2, H)``, or dots.
AXIS = rf"(?:\.\.\.|\*?[A-Za-z]'?(?:_?\w)?|[1-9]\d*|depth|batch|windows|\({INNER}\))"
SHAPE = re.compile(rf"\(\s*{AXIS}(?:\s*[-+*/^ ]\s*{AXIS})*\s*,{INNER}\)|\bscalars?\b|\bany shape\b|\bsame shape\b")
#: A state dict: its tensors have whatever shapes the model has.
STATE_DICT = re.compile(r"\b(dict|Mapping|StateDict)\[str, Tensor\]")
TENSOR = re.compile(r"\b(Tensor|ndarray|ImageBatch|Features|Tokens)\b")


class Function(NamedTuple):
    """A public function or method."""

    name: str  #: ``module.Class.function``
    place: str  #: ``file:line``
    docstring: str
    tensors: bool  #: whether its signature has any

    @property
    def shapes(self) -> bool:
        return SHAPE.search(self.docstring) is not None


def public_functions(package: Path = PACKAGE) -> list[Function]:
    """Functions of modules and methods of classes whose names have no leading ``_``, all the way up."""
    found = []
    for file in sorted(package.rglob("*.py")):
        module = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for name, node in _functions(ast.parse(file.read_text(encoding="utf-8"))):
            place = f"{file.relative_to(package.parent)}:{node.lineno}"
            found.append(Function(f"{module}.{name}", place, ast.get_docstring(node) or "", _has_tensors(node)))
    return [f for f in found if not any(part.startswith("_") for part in f.name.split("."))]


def _functions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not any(".setter" in ast.unparse(d) for d in node.decorator_list):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _has_tensors(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg]
    hints = [a.annotation for a in arguments if a is not None and a.annotation is not None]
    written = [STATE_DICT.sub("", ast.unparse(hint)) for hint in [*hints, node.returns] if hint is not None]
    return any(TENSOR.search(hint) for hint in written)


def shares(functions: list[Function]) -> tuple[float, float]:
    """Of all functions those with a docstring; of those with tensors, those that say shapes. Both in [0, 1]."""
    tensors = [f for f in functions if f.tensors]
    return (
        sum(bool(f.docstring) for f in functions) / len(functions),
        sum(f.shapes for f in tensors) / len(tensors),
    )


if __name__ == "__main__":
    functions = public_functions()
    for function in functions:
        if not function.docstring:
            print(f"no docstring  {function.place}  {function.name}")
        elif function.tensors and not function.shapes:
            print(f"no shapes     {function.place}  {function.name}")
    documented, shaped = shares(functions)
    print(f"{documented:.1%} of {len(functions)} public functions have a docstring")
    print(f"{shaped:.1%} of {sum(f.tensors for f in functions)} with tensors say shapes")
