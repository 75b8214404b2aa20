"""One name, one thing: no two classes share a name, and nothing is defined that nobody asks for."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: What only people call, or programs that were written for another package, and whose name there it bears.
FOR_OTHERS = {
    "Meta's SamPredictor": {"is_image_set", "get_image_embedding", "set_torch_image"},
    "Meta's ResizeLongestSide": {
        "apply_image", "apply_boxes", "apply_image_torch", "apply_boxes_torch", "get_preprocess_shape",
    },
    "Meta's Sam": {"pixel_mean", "pixel_std"},
    "Meta's ONNX export": {"predict_masks", "_pe_encoding", "num_point_embeddings"},
    "open_clip's CLIP": {"get_logits", "lock_text_tower"},
    "timm's models": {"get_intermediate_layers", "set_input_size"},
    "TensorBoard's EventFileWriter": {"get_logdir", "add_event", "reopen"},
    "LightningCLI, by the name of the command": {
        "after_fit", "after_validate", "after_test", "after_predict", "before_validate", "before_test",
    },
    "ONNX Runtime's CalibrationDataReader": {"get_next"},
    "SamPredictor with several images": {"use_image"},
    "a pooled backbone": {"copy_for_training"},
    "ImageSearch": {"find"},
}  # fmt: skip


@cache
def _trees(pattern: str) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.glob(pattern))}


@cache
def _definitions() -> list[tuple[str, Definition, Path]]:
    """Dotted name in its module, and where it is."""

    def within(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, Definition):
                name = f"{prefix}{child.name}"
                yield name, child
                name += "."
            yield from within(child, name)

    trees = _trees("visionzoo/**/*.py")
    return [(name, node, path) for path, tree in trees.items() for name, node in within(tree, "")]


def _mentioned() -> set[str]:
    """Every name that code reads (texts for ``getattr`` included), or that the documentation shows."""
    found: set[str] = set()
    for pattern in ("visionzoo/**/*.py", "benchmarks/**/*.py", "train.py"):
        for tree in _trees(pattern).values():
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    found.add(node.id)
                elif isinstance(node, ast.Attribute):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.:]+", str(node.value)):
                    found.update(re.split(r"[.:]", str(node.value)))
    for template in ROOT.glob("visionzoo/**/*.html"):
        found.update(re.findall(r"\w+", template.read_text()))
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for code in re.findall(r"```.*?```|`[^`]+`", page.read_text(), re.S):
            found.update(re.findall(r"\w+", code))
    return found


def _is_called_by_a_framework(name: str, path: Path) -> bool:
    """Whether a class from outside the package, from which this method's class inherits, declares it too."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    here: object = importlib.import_module(".".join(p for p in parts if p != "__init__"))
    *owners, method = name.split(".")
    for owner in owners:
        here = getattr(here, owner, None)
    if not inspect.isclass(here):
        return False
    return any(method in vars(c) for c in here.__mro__ if c.__module__.split(".")[0] != "visionzoo")


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for name, node, path in _definitions():
        if isinstance(node, ast.ClassDef):
            places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    for path, tree in _trees("visionzoo/**/*.py").items():
        for node in (n for n in tree.body if isinstance(n, ast.Assign)):
            found = re.match(r"(\w+) = TypeVar\(", ast.unparse(node))
            if found and found[1] in places:
                places[found[1]].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [p for p in places.values() if len(p) > 1] == []


def test_nothing_is_defined_that_nobody_asks_for() -> None:
    mentioned, allowed = _mentioned(), set().union(*FOR_OTHERS.values())
    unused = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for name, node, path in _definitions()
        if node.name not in mentioned | allowed and not node.name.startswith("__")
        if not _is_called_by_a_framework(name, path)
    ]
    assert unused == [], "delete it, or say in FOR_OTHERS who calls it"


def test_the_list_of_what_others_call_is_up_to_date() -> None:
    defined = {node.name for _, node, _ in _definitions()}
    assert set().union(*FOR_OTHERS.values()) - defined == set()
