"""A model hub on this machine: the few addresses that huggingface_hub's client asks, for one repository at a time."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789" * 4


class FakeHub:
    """Answers at :attr:`address`; keeps what was committed in :attr:`files`."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self.repository, self.private, self.tokens = "", False, set[str]()
        self.refuses = refuses
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

            def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self._chunks()
                hub.tokens.add(self.headers.get("Authorization", ""))
                if hub.refuses:
                    return self._send(b'{"error": "no"}', 403)
                return self._send(json.dumps(hub.post(self.path.partition("?")[0], body)).encode())

            def _chunks(self) -> bytes:
                parts = []
                while size := int(self.rfile.readline().strip(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/"):
                    found = {"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": f} for f in hub.files]}
                    return self._send(json.dumps(found).encode())
                name = path.rpartition("/resolve/main/")[2]
                if path.startswith(f"/{hub.repository}/") and name in hub.files:
                    content = hub.files[name]
                    tag = f'"{hashlib.sha1(content).hexdigest()}"'
                    return self._send(content, ETag=tag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
                code = "EntryNotFound" if path.startswith(f"/{hub.repository}/") else "RepoNotFound"
                return self._send(b"{}", 404, X_Error_Code=code, X_Repo_Commit=COMMIT)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """What a POST is answered with."""
        if path == "/api/repos/create":
            wish = json.loads(body)
            self.repository = f"{wish['organization']}/{wish['name']}" if wish.get("organization") else wish["name"]
            self.private = bool(wish.get("private")) or wish.get("visibility") == "private"
            return {"url": f"{self.address}/{self.repository}", "name": self.repository}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.address}/{self.repository}/commit/{COMMIT}",
                "pullRequestUrl": None,
            }
        return {"errors": [], "warnings": []}  # whether a card's facts are good

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
