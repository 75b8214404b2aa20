"""Text that a person reads at a terminal: what a terminal would act on is written out instead.

Names of classes and files come from data that anybody may have made, and a terminal obeys the escape sequences in them.
Data for programs (JSON, CSV) keep them as they are. This module imports nothing from visionzoo.
"""

from __future__ import annotations

import re
import shlex
from typing import TextIO

#: Control characters (C0 but newline and tab, DEL, C1), separators that end a line, marks that turn the reading
#: direction, and what is no character in UTF-8.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """``str(text)`` with escape sequences in it written out, as Python would: ``\\x1b[2J``. Newlines and tabs stay."""
    return _ACTS.sub(_written_out, str(text))


def visible_name(text: object) -> str:
    """:func:`visible` for what belongs on one line, such as a file name: newlines and tabs are written out too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def visible_json(text: str) -> str:
    """JSON that is safe to show, and still says the same: what a terminal acts on is in JSON's own escapes."""
    return _ACTS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """``print`` for everything that a person reads: :func:`visible`, on stdout or ``file``."""
    print(visible(text), file=file, flush=flush)


def shell_quoted(text: str) -> str:
    """``text`` as one word of a command line, on one line: what a person copies."""
    if text.isprintable():
        return shlex.quote(text)
    plain = "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in text)
    return f"$'{plain}'"  # of bash, zsh and ksh


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
