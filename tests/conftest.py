"""For every test: one thread a process, since pytest-xdist runs as many processes as there are cores."""

import os

import pytest

# Before torch is imported, so that subprocesses of tests inherit it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items):
    """Skip GPU tests where there is none, with the reason."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
