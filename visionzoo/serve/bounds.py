"""How much one request may ask for, and what it hears when it asks for more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of a server."""

    body: int = 32 * 2**20  #: bytes of a request
    pixels: int = 50_000_000  #: of one picture
    points: int = 64  #: of one object
    objects: int = 2000  #: of one picture
    labels: int = 1000  #: of one question
    label_length: int = 300  #: characters
    sentences: int = 20_000  #: labels times templates, of one question
    seconds: float = 60.0  #: that an answer may take, the wait before it included
    grid: int = 32  #: clicks along each side where everything is segmented
    waiting: int = 128  #: requests for one model; what comes then is told to come again
    batch: int = 32  #: pictures through a model at a time
    pictures: int = 24  #: kept with their embeddings


class Refused(Exception):
    """A request that is not answered: HTTP status, and why, for a person."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why
