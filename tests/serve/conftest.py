"""One server for all tests of it, with the models that come with the package."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn

from visionzoo.serve.app import create_app
from visionzoo.serve.demo import Demo, DemoOptions
from visionzoo.serve.guard import LOOPBACK, Door
from visionzoo.serve.run import bind


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    """A server that listens."""

    port: int
    demo: Demo

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            named.setdefault("Content-Type", "image/png")
        elif body is not None and not hasattr(body, "__next__"):
            body, named = json.dumps(body).encode(), {"Content-Type": "application/json", **named}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, named)
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return answer


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server in a thread, with options of :class:`DemoOptions` and of :class:`Door`."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(*, token: str | None = None, app: Any = None, **options: Any) -> Server:
        demo = Demo(DemoOptions(device="cpu", **options))
        door = Door(hosts=frozenset(LOOPBACK), token=token, body=demo.bounds.body)
        listening = bind("127.0.0.1", 0)
        config = uvicorn.Config(app or create_app(demo, door), log_level="warning", access_log=False, ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive()
        running.append((server, thread))
        return Server(listening.getsockname()[1], demo)

    yield run
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture(scope="session")
def nucleus() -> bytes:
    """A picture of nuclei."""
    return (Path(__file__).parents[2] / "visionzoo/serve/samples/nuclei-1.png").read_bytes()
