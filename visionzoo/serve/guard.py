"""Who may ask: what stands before every request.

A page of another site must not reach a server on this machine. Its requests carry ``Origin`` or ``Sec-Fetch-Site``, and
those of a name that was turned to 127.0.0.1 afterwards (DNS rebinding) carry that name as ``Host``.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "visionzoo_token"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
METHODS = ("GET", "HEAD", "POST")
#: For everything that is sent: nothing from elsewhere is loaded, nothing of ours is shown inside another page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who is let in."""

    hosts: frozenset[str] | None  #: names in ``Host``; None for any, where a token keeps strangers out
    token: str | None = None
    body: int = 32 * 2**20  #: bytes


class Guard:
    """Answers for the application where a request may not come in."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1003})
            return

        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._answer(scope)
        try:
            await (self.app if answer is None else answer)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # the server stops, and will not wait for this one any longer
            if not started:
                await refusal(503, "the server is stopping")(scope, receive, send_guarded)

    def _answer(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _hostname(host)
        if self.door.hosts is not None and name not in self.door.hosts:
            return refusal(403, f"this server is not called {name!r:.80}; open it as it was printed at the terminal")
        if scope["method"] not in METHODS:
            return refusal(405, f"{scope['method']} is not used here")
        navigates = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        foreign |= headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates
        if foreign:
            return refusal(403, "a page of another site may not ask this server")
        if (length := headers.get("content-length")) and int(length) > self.door.body:
            return refusal(413, f"{int(length):,} bytes are too many; at most {self.door.body:,} are taken")
        return None if self.door.token is None or scope["path"] == "/healthz" else self._checked(scope, headers)

    def _checked(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who has the token; who brings it in the address gets it as a cookie."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and self._is_token(query.pop("token", [""])[0]):
            response = RedirectResponse(f"/?{urlencode(query, doseq=True)}".rstrip("?"), status_code=303)
            response.set_cookie(COOKIE, self.door.token or "", httponly=True, samesite="strict", path="/")
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(bearer) or self._is_token(_cookie(headers.get("cookie", ""))):
            return None
        return refusal(401, "this server wants its token: open the address that was printed, or send it as a Bearer")

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), (self.door.token or "").encode())


def refusal(status: int, why: str) -> JSONResponse:
    """Why not, for a person, in the form of every error here."""
    return JSONResponse({"error": why}, status_code=status)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
