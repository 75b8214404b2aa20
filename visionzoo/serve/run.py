"""Listen, and stop when asked to."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn

from visionzoo.serve.app import create_app
from visionzoo.serve.demo import Demo
from visionzoo.serve.guard import LOOPBACK, Door

PORT = 8765
#: Where the usual port is taken, so many after it are tried.
_NEXT = 20
#: Seconds that a thread may keep the interpreter from others. With Python's 5 ms the loop waits that long for a small
#: model, which is mostly Python, after every picture that it reads; so the server answers half as many.
_SWITCH = 0.0005


class _Server(uvicorn.Server):
    """Says that it listens once it does, and a Ctrl-C finds its handler: earlier ones may be lost in an import."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()


def bind(host: str, port: int | None) -> socket.socket:
    """A socket that listens at ``host``: at ``port``, or at the first free one from :data:`PORT` on.

    Raises:
        OSError: saying which port is taken, or that the address is none of this machine.
    """
    tried = [port] if port is not None else list(range(PORT, PORT + _NEXT))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in tried:
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
        except OSError as error:
            listening.close()
            if number == tried[-1]:
                why = f"cannot listen at {host} port {number}: {error.strerror}; give another --host or --port"
                raise OSError(why) from None
        else:
            return listening
    raise AssertionError("no port was tried")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    demo: Demo,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    token: str | None = None,
    names: Sequence[str] = (),
    ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Answer until SIGINT or SIGTERM; what is being answered is finished.

    Args:
        demo: the models; closed at the end.
        host: where to listen.
        port: None for the first free one.
        token: that every request must have; made up where others reach the server.
        names: that others know this server by.
        ready: called with the address to open, token included, once it listens.

    Raises:
        OSError: as :func:`bind`.
    """
    listening = bind(host, port)
    number = listening.getsockname()[1]
    if not is_loopback(host):
        token = token or secrets.token_urlsafe(24)
    anywhere = host in ("0.0.0.0", "::")
    hosts = None if anywhere and not names else frozenset({*LOOPBACK, host.lower(), *map(str.lower, names)})
    app = create_app(demo, Door(hosts=hosts, token=token, body=demo.bounds.body))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5, ws="none"
    )
    shown = (names[0] if names else socket.gethostname() if anywhere else host).lower()
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"http://{shown}:{number}/" + (f"?token={token}" if token else "")
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        _Server(config, lambda: ready(address)).run(sockets=[listening])
    finally:
        sys.setswitchinterval(before)
