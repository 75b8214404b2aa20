"""Peak memory of this process, and of no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from visionzoo.runs.memory import peak_bytes

CHILD = "from visionzoo.runs.memory import peak_bytes; print(peak_bytes())"


@pytest.mark.long
def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it() -> None:
    held = bytearray(b"x") * (12 * 10**8)
    assert peak_bytes() >= len(held)
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 9 * 10**8 < len(held)
