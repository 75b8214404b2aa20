"""What goes wrong in an export, in one line."""

from __future__ import annotations

import re
from importlib.util import find_spec

#: What the extra ``[export]`` installs, by the names that are imported.
NEEDED = ("onnx", "onnxruntime", "onnxscript")
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|([\w]+::[\w.]+)")


class NotTheSame(Exception):
    """The exported file does not give the model's answers."""


def need_export_extra(modules: tuple[str, ...] = NEEDED) -> None:
    """Raises ValueError, naming what is not installed of the extra."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ValueError(f"exporting needs {', '.join(missing)}: pip install 'visionzoo[export]'")


def cannot_export(what: str, error: Exception, *, open_size: bool = False) -> ValueError:
    """The error for a network that the exporter gave up on: the operator, where one is named, and the reason."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = "\n".join(map(str, causes))
    named = re.search(r"No (?:ONNX function|decompositions).*", text)
    operator = _OPERATOR.search(named[0] if named else text)
    last = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), type(error).__name__)
    name = "" if operator is None else f" at the operator {operator[1] or operator[2]}"
    hint = "; --fixed-size asks less of it" if open_size else ""
    return ValueError(f"{what} cannot be exported: torch's exporter stops{name}: {last[:300]}{hint}")
