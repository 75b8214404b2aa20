"""The application: routes, errors in words, and what stands before them."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

import visionzoo
from visionzoo.serve.api import Api
from visionzoo.serve.bounds import Refused
from visionzoo.serve.demo import Demo
from visionzoo.serve.guard import Door, Guard, refusal
from visionzoo.serve.measure import RequestMeter
from visionzoo.serve.page_api import PageApi
from visionzoo.serve.reading import in_one_line

PAGE = Path(__file__).parent / "page"
#: What the report is drawn by; the package itself is imported when a matrix is.
REPORT = Path(visionzoo.__file__).parent / "report" / "page"


def create_app(demo: Demo, door: Door) -> ASGIApp:
    """The server's application; it closes ``demo`` when it stops."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        demo.close()

    app = FastAPI(
        title="visionzoo",
        version=visionzoo.__version__,
        description="Names, words, masks and embeddings of pictures. A picture is the body of a request.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    # What takes no parameters is plain: what FastAPI does for a route costs time in every request, and to begin with.
    for path, name in {"/": "index.html", "/docs": "docs.html"}.items():
        app.add_route(path, _file(PAGE / name), methods=["GET"])
    for file in sorted(PAGE.iterdir()):  # these files, and whatever is asked for, no others
        app.add_route(f"/page/{file.name}", _file(file), methods=["GET"])
    for name in ("components.css", "page.js"):  # how the report looks, for what the page shows of a run
        app.add_route(f"/page/report/{name}", _file(REPORT / name), methods=["GET"])
    app.add_route("/healthz", _healthy, methods=["GET"])
    app.add_route("/metrics", _metrics(demo), methods=["GET"])
    api = Api(demo)
    app.router.routes.append(
        PlainRoute("/v1/classify", api.classify_plainly, methods=["POST"], include_in_schema=False)
    )
    app.include_router(api.router())
    app.include_router(PageApi(demo).router())
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ValueError, _wrong)
    app.add_exception_handler(OSError, _broken)
    app.add_exception_handler(RequestValidationError, _misspelled)
    app.add_exception_handler(HTTPException, _no_route)
    return Guard(RequestMeter(app, demo.metrics), door)


def _file(path: Path):  # type: ignore[no-untyped-def]
    content, kind = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    kind = "text/javascript" if path.suffix == ".js" else kind  # some systems call it by another name

    async def give(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return give


def _metrics(demo: Demo):  # type: ignore[no-untyped-def]
    async def give(_request: Request) -> Response:
        return Response(demo.metrics.text(), media_type="text/plain; version=0.0.4")

    return give


async def _healthy(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class PlainRoute(Route):
    """A route for requests without parameters; those with some are for the next one, which checks them."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's routes."""
        return super().matches(scope) if not scope.get("query_string") else (Match.NONE, {})


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    answer = refusal(error.status, error.why)
    if error.status in (429, 503):
        answer.headers["Retry-After"] = "1"
    return answer


async def _wrong(_request: Request, error: Exception) -> JSONResponse:
    return refusal(400, str(error))


async def _broken(_request: Request, error: Exception) -> JSONResponse:
    return refusal(500, f"a file could not be read or written: {error}")


async def _misspelled(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return refusal(422, in_one_line(error.errors()))


async def _no_route(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    words = {
        404: "there is nothing at this address; /docs lists what there is",
        405: "this address takes another method",
    }
    return refusal(error.status_code, words.get(error.status_code, str(error.detail)))
