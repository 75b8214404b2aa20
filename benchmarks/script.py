"""How a benchmark that people run ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class Interrupted(Exception):
    """Stopped from outside, in a way that the same command can go on from."""


def exit_code(run: Callable[[], int]) -> int:
    """What ``run`` gives; 2 for the user's error, 130 when interrupted, each with a line."""
    try:
        return run()
    except (Interrupted, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("VISIONZOO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
