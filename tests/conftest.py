"""What tests in every folder may use."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

# pytest-xdist runs as many processes as there are cores, so each gets one thread, subprocesses of tests too. Set before
# torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Each process of a session, and what it starts, keeps what it computes in a cache that goes with it: not in the user's.
_CACHE = tempfile.TemporaryDirectory(prefix="visionzoo-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name

#: Run at the start of a process: from here on, any use of the network is an error that names the address.
BLOCK_NETWORK = """
import socket
def _refuse(*args, **kwargs):
    raise AssertionError(f"used the network: {args[-1] if len(args) < 3 else args[:2]}")
socket.socket.connect = socket.socket.connect_ex = _refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = _refuse
"""


@pytest.fixture(autouse=True, scope="module")
def forget_models() -> Iterator[None]:
    """Free the models that tests of a module have shared: those of the whole suite are several gigabytes."""
    yield
    folder = str(Path(__file__).parent)
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None)).startswith(folder):
            for value in list(vars(module).values()):
                if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "cache_clear"):
                    value.cache_clear()
    if "torch._dynamo" in sys.modules:  # compiled graphs hold their models
        sys.modules["torch._dynamo"].reset()
    gc.collect()


@pytest.fixture
def block_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for the length of a test, any use of the network is an error."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"used the network: {args}")

    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "getaddrinfo"),
        (socket, "gethostbyname"),
        (socket, "create_connection"),
    ):
        monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def run_offline(tmp_path: Path) -> Callable[..., str]:
    """``run_offline(code)``: run code in a new process without a network, in an empty folder; gives what it printed."""

    def run(code: str, timeout: float = 120) -> str:
        script = tmp_path / "offline.py"
        script.write_text(BLOCK_NETWORK + code)
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        # Empty caches: nothing may depend on what an earlier download left behind.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TORCH_HOME"))}
        env.update(HOME=str(work), XDG_CACHE_HOME=str(work), PYTHONPATH=str(Path(__file__).parents[1]))
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=timeout, cwd=work, env=env
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``survived(fault, count=1)``: for the table in docs/reliability.md, see ``tests/reliability/report.py``."""

    def note(fault: str, count: int = 1) -> None:
        record_property("survived", f"{count} {fault}")

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is none, with the reason."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")  # while it is there, no other test of the process can run an event loop
def browser() -> Iterator[Any]:
    """A real headless browser, by playwright; skips, with a reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    installed = next((path for name in names if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if installed is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no browser is installed: neither chromium on the path, nor playwright's own")
        options = {} if installed is None else {"executable_path": installed}
        started = playwright.chromium.launch(args=["--no-sandbox"], **options)
        yield started
        started.close()
