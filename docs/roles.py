"""For the site: Sphinx's roles in docstrings (``:func:`name` ``) become plain code, which Markdown can show."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=`)")


class Roles(griffe.Extension):
    """Takes the roles off every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub("", obj.docstring.value).replace("`~", "`")
