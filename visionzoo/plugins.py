"""Other people's code: modules that a user names, packages that announce themselves, and what a run remembers of them.

A module registers backbones, tasks, losses and the like when it is imported. There are three ways to be imported:

- the user types ``--import my_module`` (or a ``.py`` file): :func:`import_typed`;
- an installed package has ``[project.entry-points."visionzoo"]``: :func:`load_installed`;
- a run or an exported model says that it was made with a module: :func:`require`; or the options of a run's trainer
  name a callback, a logger or the like: :func:`require_classes`. Such a file may come from a stranger,
  so it can ask only for what the user has installed as an extension of visionzoo: a module by name, found on the
  import path (neither in the current directory nor in the folder that asks), whose package imports visionzoo.
  For anything else the user has to type ``--import``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

GROUP = "visionzoo"
#: Names that runs remember -> what the user typed, in the order of import.
_typed: dict[str, str] = {}
#: Entries of the import path that are there only because the user typed a module or a file in them.
_added: set[Path] = set()
_announced = list(metadata.entry_points(group=GROUP))  #: by installed packages, and not imported yet
#: Packages whose classes and functions the options of a trainer may name.
_TRUSTED = ("lightning", "pytorch_lightning", "torch", "visionzoo")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_USES_US = re.compile(rb"^\s*(import|from)\s+visionzoo\b", re.MULTILINE)


class PluginError(ValueError):
    """A module that was asked for cannot be imported, or may not be. The message is one line for the user."""


def import_typed(name: str) -> ModuleType:
    """Import what a user named: a module on the path or in the current directory, or a ``.py`` file.

    It is remembered (see :func:`remembered`). A file becomes the module of its name.

    Raises:
        PluginError: if there is no such module, or it fails.
    """
    module = _import_file(Path(name)) if name.endswith(".py") else _import_name(name)
    _typed.setdefault(Path(name).name if name.endswith(".py") else name, name)
    return module


def _import_name(name: str) -> ModuleType:
    here = Path.cwd()
    top = name.partition(".")[0]
    if top not in sys.modules and PathFinder.find_spec(top) is None and PathFinder.find_spec(top, [str(here)]):
        _add_to_path(here)
    return _import(name, f"--import {name}")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"--import {path}: there is no such file")
    name = path.stem
    known = sys.modules.get(name)
    file = getattr(known, "__file__", None) if known is not None else _origin(name)
    if not name.isidentifier():
        raise PluginError(f"--import {path}: {name} cannot name a module; rename the file")
    if (known or file) and Path(file or "").resolve() != path.resolve():
        raise PluginError(f"--import {path}: there is another module {name}; rename the file")
    _add_to_path(path.resolve().parent)  # processes that read data import it again, by name
    return _import(name, f"--import {path}")


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        _added.add(folder.resolve())
        importlib.invalidate_caches()


def _origin(name: str) -> str | None:
    spec = PathFinder.find_spec(name)
    return None if spec is None else spec.origin or "another package"


def _import(name: str, asked_by: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise PluginError(f"{asked_by}: there is no module {error.name}; install it, or name a .py file") from error
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())
        raise PluginError(
            f"{asked_by} failed: {type(error).__name__}: {message} ({Path(where.filename).name}, line {where.lineno})"
        ) from error


# ---- installed packages -------------------------------------------------------------------------------------------


def load_installed() -> None:
    """Import what installed packages announce, once. A broken one is a warning that names the package."""
    while _announced:  # an extension that asks for a backbone while it is imported comes here again
        point = _announced.pop()
        try:
            point.load()
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(
                f"the extension {point.value} of the package {_package(point)} is left out: {message}", stacklevel=2
            )


def installed_packages() -> list[str]:
    """``name version`` of each package that announces an extension. Imports none."""
    return sorted({_package(point) for point in metadata.entry_points(group=GROUP)})


def _package(point: metadata.EntryPoint) -> str:
    return point.name if point.dist is None else f"{point.dist.name} {point.dist.version}"


# ---- what a run remembers -----------------------------------------------------------------------------------------


def remembered() -> list[str]:
    """What a run writes down: names of modules, and of files without their folders."""
    return list(_typed)


def typed() -> list[str]:
    """What the user typed, for a command that does the same again."""
    return list(_typed.values())


def require(names: Iterable[str], origin: str | os.PathLike[str]) -> None:
    """Import what a run or a model was made with, as far as its file may ask for it.

    Args:
        names: what :func:`remembered` gave.
        origin: the file that names them.

    Raises:
        PluginError: saying which ``--import`` to add.
    """
    load_installed()
    for name in names:
        if name in _typed:
            continue
        if name.removesuffix(".py") in sys.modules:
            _typed[name] = name
            continue
        if not _is_module(name) or not _is_extension(name, Path(origin).resolve().parent):
            shown = name if name.isprintable() else ascii(name)
            raise PluginError(
                f"{origin} was made with --import {shown}, which is no installed extension of visionzoo, so a file "
                f"alone cannot have it run: look at that code, and add --import {shown} (its path, if it is a file)"
            )
        _import(name, f"{origin}, made with --import {name},")
        _typed[name] = name  # what is made from it needs it as well


def classes_in(options: Any, key: str = "") -> Iterator[str]:
    """Strings in a run's options for Lightning's trainer by which a parser would import something."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from classes_in(value, str(name))
    elif isinstance(options, list | tuple):
        for value in options:
            yield from classes_in(value, key)
    elif isinstance(options, str) and _DOTTED.fullmatch(options):
        top = options.partition(".")[0]
        known = top in sys.modules or top in sys.builtin_module_names or PathFinder.find_spec(top) is not None
        if key.endswith("class_path") or known:
            yield options


def module_of(path: str) -> str:
    """``package.module`` of ``package.module.Class``, as far as it has been imported."""
    parts = path.split(".")
    found = [".".join(parts[:i]) for i in range(1, len(parts)) if ".".join(parts[:i]) in sys.modules]
    return found[-1] if found else ".".join(parts[:-1])


def is_trusted(path: str) -> bool:
    """Whether ``package.module.Class`` is ours, Lightning's or torch's, or of a module that the user has typed."""
    parts = path.split(".")
    names = {".".join(parts[:i]) for i in range(1, len(parts))}
    return parts[0] in _TRUSTED or not names.isdisjoint(name.removesuffix(".py") for name in _typed)


def require_classes(paths: Iterable[str], origin: str | os.PathLike[str]) -> None:
    """See that a run's options name no class or function but those of Lightning, of extensions, and what was typed.

    Raises:
        PluginError: saying which ``--import`` to add. Nothing has been imported then.
    """
    for path in paths:
        parts = path.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        if not is_trusted(path) and not any(_is_extension(name, Path(origin).resolve().parent) for name in modules):
            raise PluginError(
                f"{origin} asks for {path}, which is neither Lightning's nor of an installed extension, so a "
                f"file alone cannot have it run: look at that code, and add --import {modules[-1]}"
            )


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")


def _is_extension(name: str, asking: Path) -> bool:
    """Whether a module is installed and its package imports visionzoo. Imports nothing."""
    untrusted = {Path.cwd().resolve(), *_added}
    path: Sequence[str] = [p for p in sys.path if p and not _inside(Path(p).resolve(), asking, untrusted)]
    spec: ModuleSpec | None = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return False
        path = list(spec.submodule_search_locations or ())
    assert spec is not None
    if spec.origin is None or not spec.origin.endswith(".py"):
        return False
    file = Path(spec.origin).resolve()
    if asking in file.parents:
        return False
    files = sorted(file.parent.glob("*.py")) if spec.submodule_search_locations else [file]
    return any(_USES_US.search(source.read_bytes()) for source in files)


def _inside(entry: Path, asking: Path, untrusted: set[Path]) -> bool:
    return entry in untrusted or entry == asking or asking in entry.parents
