"""What ``/metrics`` says, in Prometheus' words."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32)


class ServerMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "visionzoo_requests", "Requests that were answered", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "visionzoo_request_seconds", "Time to an answer", ("path",), buckets=_SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "visionzoo_batch_size", "Items of a batch", ("model",), buckets=_SIZES, registry=self._registry
        )
        self._waiting = Gauge("visionzoo_waiting", "Items that wait for a model", ("model",), registry=self._registry)
        self._pictures = Gauge("visionzoo_pictures", "Pictures that are kept", registry=self._registry)

    def saw_batch(self, model: str, size: int) -> None:
        """A batch of ``size`` items went through ``model``."""
        self._batches.labels(model).observe(size)

    def watch_queue(self, model: str, depth: Callable[[], int]) -> None:
        """Ask ``depth`` how many items wait for ``model``."""
        self._waiting.labels(model).set_function(depth)

    def watch_pictures(self, count: Callable[[], int]) -> None:
        """Ask ``count`` how many pictures are kept."""
        self._pictures.set_function(count)

    def saw_request(self, path: str, status: int, seconds: float) -> None:
        """A request for the route ``path`` was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """What a scraper reads."""
        return generate_latest(self._registry)


class RequestMeter:
    """Measures the requests to an application. Paths are those of routes: others would be as many as anyone likes."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            plain: str = scope["path"] if "endpoint" in scope else "other"  # a route without parameters is its own path
            path: str = getattr(scope.get("route"), "path", plain)
            self.metrics.saw_request(path, status, time.perf_counter() - start)
