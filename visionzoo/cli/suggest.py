"""What the user may have meant: one rule for commands, options and names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The command line or a configuration file is wrong. The message is one line for the user."""


def suggestion(word: str, known: Iterable[str], *, count: int = 1, otherwise: str = "") -> str:
    """``did you mean A or B?`` with the nearest of ``known``; ``otherwise`` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
