"""Everything that an installation brings in may be used, changed and passed on: licences against an allow list."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

#: SPDX names, and what older packages write in their place. All are permissive.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib",
    "Apache", "Apache 2.0", "Apache 2.0 License", "Apache Software License", "BSD", "BSD License",
    "BSD 3-Clause License", "3-Clause BSD License", "FreeBSD", "ISC License", "ISC License (ISCL)", "MIT License",
    "Python Software Foundation License",
}  # fmt: skip
#: Packages that are used in spite of their licence, with the reason.
EXCEPTIONS = {
    "tqdm": "MPL-2.0 for some of its files; the condition is on changing those files, which nobody here does",
    "cuda-toolkit": "names NVIDIA's packages and holds no files; torch's CUDA build asks for it",
}
#: As above, for every package whose name starts so.
EXCEPTIONS_BY_PREFIX = {
    "nvidia-": "NVIDIA's runtime libraries, which torch's CUDA build asks for and its CPU build does not; passed on "
    "by NVIDIA alone",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in (extras | {""}))


@cache
def installed() -> dict[str, str]:
    """What the dependencies declared in pyproject.toml bring in, by name, with what is said of the licence."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    todo = [Requirement(text) for text in (*project["dependencies"], *extras["lora"], *extras["sam"])]
    found: dict[str, str] = {}
    while todo:
        requirement = todo.pop()
        name = normal(requirement.name)
        if name in found:
            continue
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform, or an extra that is not installed here
            continue
        found[name] = _licence(package.metadata)
        needs = (Requirement(text) for text in package.requires or ())
        todo += [r for r in needs if _wanted(r, requirement.extras)]
    return found


def _licence(facts: metadata.PackageMetadata) -> str:
    """The expression; else the classifiers, which are words of a fixed list; else the free text."""
    if expression := facts.get("License-Expression"):
        return expression
    classifiers = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier", []) if c.startswith("License ::")]
    return " AND ".join(classifiers) or (facts.get("License") or "").strip().partition("\n")[0]


def problem(name: str, licence: str) -> str:
    """What is wrong with a licence; nothing if it is allowed. One of alternatives is enough, all parts must be."""
    if name in EXCEPTIONS or name.startswith(tuple(EXCEPTIONS_BY_PREFIX)):
        return ""
    bare = licence[1:-1] if re.fullmatch(r"\([^()]*\)", licence) else licence
    alternatives = [bare] if "(" in bare else bare.split(" OR ")  # nested ones are not taken apart, hence refused
    if any(all(part in ALLOWED for part in alternative.split(" AND ")) for alternative in alternatives):
        return ""
    return f"{name}: {licence or 'no licence is stated'}"


def test_every_dependency_has_an_allowed_licence() -> None:
    found = installed()
    assert {"torch", "timm", "pytorch-lightning", "peft", "numpy", "jinja2"} <= found.keys()  # jinja2 through torch
    assert not [text for name, licence in sorted(found.items()) if (text := problem(name, licence))]


def test_exceptions_are_still_needed() -> None:
    assert not [name for name in EXCEPTIONS if name in installed() and installed()[name] in ALLOWED]


@pytest.mark.parametrize(
    ("name", "licence", "allowed"),
    [
        ("a", "MIT", True),
        ("a", "Apache-2.0 OR GPL-3.0-only", True),
        ("a", "(MIT AND Zlib)", True),
        ("a", "MIT AND GPL-3.0-only", False),
        ("a", "(MIT OR Zlib) AND GPL-3.0-only", False),
        ("a", "GNU General Public License v3 (GPLv3)", False),
        ("a", "", False),
        ("tqdm", "MPL-2.0 AND MIT", True),
        ("nvidia-new", "LicenseRef-NVIDIA-Proprietary", True),
    ],
)
def test_the_check_can_fail(name: str, licence: str, allowed: bool) -> None:
    assert (problem(name, licence) == "") == allowed
