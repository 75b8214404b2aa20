"""The layer table of docs/architecture.md, enforced on every import statement, wherever it stands."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "visionzoo"

#: A module imports from its own package and from rows above its own. (The table has registry and pool in one row.)
ROWS = (
    ("limits", "plain", "terminal", "contract", "plugins", "processors"),
    ("types", "files", "text", "macs", "signals"),
    ("facts", "embedded"),
    ("layers",),
    ("weights",),
    ("cache",),
    ("registry",),
    ("pool",),
    ("backbones",),
    ("losses", "metrics"),
    ("models",),
    ("data",),
    ("runs", "viz"),
    ("report",),
    ("tasks",),
    ("inference",),
    ("export", "curation"),
    ("auto", "hub"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
ROW = {package: i for i, row in enumerate(ROWS) for package in row}
#: What the rows allow and the design forbids.
FORBIDDEN = {("data", "models"), ("inference", "tasks"), ("export", "tasks"), ("curation", "tasks")}
HEAVY = ("pytorch_lightning", "timm", "matplotlib", "albumentations", "sklearn", "transformers", "torchvision")


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(tree: ast.AST, *, functions: bool = True) -> set[str]:
    """Dotted names imported anywhere below ``tree``, except under ``if TYPE_CHECKING``."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            assert node.module is not None
            found.update(f"{node.module}.{a.name}" for a in node.names)
        elif _is_type_checking(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                found |= _imports(ast.Module([other], []), functions=functions)
        elif functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found |= _imports(node, functions=functions)
    return found


@cache
def _modules() -> dict[str, Path]:
    """Dotted name of every module of the package -> its file."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("visionzoo", *path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _owner(imported: str) -> str | None:
    """The module of the package that an imported dotted name is or lives in; None for other packages."""
    while imported and imported not in _modules():
        imported = imported.rpartition(".")[0]
    return imported or None


def _asks_root_for_dunders_only(tree: ast.AST) -> bool:
    """Whether every ``visionzoo.<name>`` of a module is like ``__version__``, which needs no other module."""
    attributes = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
    return all(n.attr.startswith("__") for n in attributes if n.value.id == "visionzoo")


@cache
def _edges(functions: bool) -> dict[str, frozenset[str]]:
    edges = {}
    for name, path in _modules().items():
        tree = ast.parse(path.read_text())
        owners = {_owner(i) for i in _imports(tree, functions=functions) - {"visionzoo.__version__"}}
        if _asks_root_for_dunders_only(tree):
            owners.discard("visionzoo")
        edges[name] = frozenset(o for o in owners if o is not None and o != name)
    return edges


def _package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _allowed(module: str, imported: str) -> bool:
    """Whether the table lets ``module`` import ``imported``."""
    here, there = _package(module), _package(imported)
    if not here or here == there:  # the root gives names from everywhere, on request
        return True
    if not there:  # ``import visionzoo`` from inside: only where a user would stand
        return here in ("inference", "cli")
    return ROW[there] < ROW[here] and (here, there) not in FORBIDDEN


def test_every_package_has_a_row() -> None:
    packages = {_package(m) for m in _modules()} - {""}
    assert packages == set(ROW)


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("visionzoo.layers.graft", "visionzoo.types", True),
        ("visionzoo.layers.graft", "visionzoo.backbones.base", False),
        ("visionzoo.registry", "visionzoo.pool", False),
        ("visionzoo.pool", "visionzoo.registry", True),
        ("visionzoo.data.keys", "visionzoo.models.bundle", False),
        ("visionzoo.inference.classifier", "visionzoo.tasks.classify", False),
        ("visionzoo.tasks.classify", "visionzoo", False),
        ("visionzoo.cli.main", "visionzoo.tasks.classify", True),
    ],
)
def test_the_rule(module: str, imported: str, allowed: bool) -> None:
    assert _allowed(module, imported) == allowed


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
import a.b
if TYPE_CHECKING:
    import unseen
else:
    import other
def f():
    from c import d
class K:
    def g(self):
        try:
            import e
        except ImportError:
            pass
"""
    tree = ast.parse(source)
    everywhere = {"typing.TYPE_CHECKING", "a.b", "other", "c.d", "e"}
    assert _imports(tree) == everywhere
    assert _imports(tree, functions=False) == everywhere - {"c.d", "e"}


@pytest.mark.parametrize("module", _modules())
def test_modules_import_only_from_rows_above(module: str) -> None:
    wrong = sorted(i for i in _edges(True)[module] if not _allowed(module, i))
    assert not wrong, f"{module} must not import {', '.join(wrong)}: see the layer table in docs/architecture.md"


@cache
def _every_edge() -> dict[str, set[str]]:
    """Module -> modules that it names in an import anywhere, in functions and for the type checker too."""
    found = {}
    for module, path in _modules().items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
        found[module] = {owner for name in names if (owner := _owner(name)) and owner != module}
    return found


def test_no_cycles() -> None:
    """Nor among imports inside functions, or for the type checker alone: a reader follows those too."""
    edges, done = _every_edge(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import cycle: " + " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in sorted(edges[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_import_is_light_and_native_backbones_need_no_timm() -> None:
    code = (
        f"import sys, visionzoo as vz; light = [m for m in {HEAVY} if m in sys.modules]; "
        f"vz.create_backbone('vit_nano_patch4_32'); print(light, [m for m in {HEAVY} if m in sys.modules])"
    )
    assert _run(code).strip() == "[] []"


@pytest.mark.long
def test_import_costs_little_more_than_torch() -> None:
    """Within a second of ``import torch``, timed after it in the same process; the best of three on a busy machine."""
    code = (
        "import time; start = time.perf_counter(); import torch; middle = time.perf_counter(); import visionzoo; "
        "print(time.perf_counter() - middle)"
    )
    extra = []
    for _ in range(3):
        extra.append(float(_run(code)))
        if extra[-1] < 1.0:
            return
    pytest.fail(f"import visionzoo took {min(extra):.2f} s more than import torch; 1 s is allowed")


def test_test_modules_have_names_of_their_own() -> None:
    """Test folders are no packages: pytest refuses two modules of one name."""
    names = [path.name for path in PACKAGE.parent.glob("tests/**/test_*.py")]
    assert sorted(names) == sorted(set(names))
