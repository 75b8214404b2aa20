"""Which rank died, and how, is said in place of what the broken connection says."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from visionzoo.tasks.engine import ranks
from visionzoo.tasks.engine.ranks import RankDiedError, Ranks


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGSEGV, "was ended by SIGSEGV"),
        (None, "ended with exit code 3"),
    ],
)
def test_a_rank_that_died_is_named(end: int | None, how: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "_watch", lambda self: None)  # it would end this process
    monkeypatch.setattr(ranks, "GRACE", 0.2)
    code = "import sys; sys.exit(3)" if end is None else "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code])
    callback, trainer = (
        Ranks("RESUME"),
        SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[process]))),
    )
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    if end is not None:
        callback.on_exception(trainer, None, RuntimeError("all live"))  # type: ignore[arg-type]
        process.send_signal(end)
    process.wait()
    callback.on_exception(trainer, None, ValueError("its own"))  # type: ignore[arg-type]
    with pytest.raises(RankDiedError, match=how):
        callback.on_exception(trainer, None, RuntimeError("Connection closed by peer"))  # type: ignore[arg-type]
    said = f"error: rank 1 (process {process.pid}) {how}; the others are stopped. Go on with:\n  RESUME\n"
    assert capsys.readouterr().err == said
