"""What comes in with a request: a body within bounds, and numbers out of its address."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from visionzoo.serve.bounds import Bounds, Refused
from visionzoo.serve.prompted import PromptedObject
from visionzoo.text import read_numbers

Model = TypeVar("Model", bound=BaseModel)
_PICTURES = ("image/", "application/octet-stream")


async def read_body(request: Request, bounds: Bounds) -> bytes:
    """The body, as far as the bounds allow.

    Raises:
        Refused: 413 for one that is too long, 408 for one that does not come.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(bounds.seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > bounds.body:
                    raise Refused(413, f"more than {bounds.body:,} bytes are not taken")
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {bounds.seconds:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the sender has gone") from None
    return b"".join(parts)


async def read_picture(request: Request, bounds: Bounds) -> bytes:
    """The bytes of a picture. Their type must be said: a form of another site cannot do that.

    Raises:
        Refused: 415 for another type; 400 for nothing; and as :func:`read_body`.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith(_PICTURES):
        raise Refused(415, f"send the picture itself as the body, with Content-Type: image/jpeg (it was {kind!r:.60})")
    if not (data := await read_body(request, bounds)):
        raise Refused(400, "the body is empty; send the bytes of a picture")
    return data


async def read_model(request: Request, kind: type[Model], bounds: Bounds) -> Model:
    """JSON, checked.

    Raises:
        Refused: 415 for another type, 400 for what does not fit, in words; and as :func:`read_body`.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "send JSON, with Content-Type: application/json")
    try:
        return kind.model_validate_json(await read_body(request, bounds))
    except ValidationError as error:
        raise Refused(400, in_one_line(error.errors())) from None


def in_one_line(problems: Sequence[Any]) -> str:
    """What pydantic found first, with its place."""
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "path"))
    given = (
        f" (it was {str(first['input'])!r:.60})" if place and isinstance(first.get("input"), str | int | float) else ""
    )
    return f"{place or 'the body'}: {str(first['msg'])[:200]}{given}"


def prompts_of(points: list[str], box: str | None, text: str | None, bounds: Bounds) -> PromptedObject:
    """``x,y`` or ``x,y,label``, and ``x0,y0,x1,y1``, as ``visionzoo masks`` spells them.

    Raises:
        ValueError: for another form, or too many points.
    """
    if len(points) > bounds.points:
        raise ValueError(f"{len(points)} points are too many; an object has at most {bounds.points}")
    read = [read_numbers(point, (2, 3), "x,y or x,y,label") for point in points]
    corners = None if box is None else read_numbers(box, (4,), "x0,y0,x1,y1")
    labels = [p[2] if len(p) == 3 else 1.0 for p in read]  # check_points says which there are
    return PromptedObject([(p[0], p[1]) for p in read], labels, corners, text)
