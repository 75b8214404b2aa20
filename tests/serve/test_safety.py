"""Other sites, other names, other folders: nothing gets in or out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionzoo.serve import run
from visionzoo.serve.run import is_loopback


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was turned to 127.0.0.1
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Host": "["},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another server on this machine
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_are_kept_out(server: Any, headers: dict[str, str]) -> None:
    for path in ("/page/state", "/v1/pictures/x", "/metrics"):
        assert server.ask("GET", path, **headers).status == 403
    assert server.ask("POST", "/page/reload", **headers).status == 403


def test_its_own_page_is_let_in(server: Any) -> None:
    own = f"127.0.0.1:{server.port}"
    assert server.ask("GET", "/page/state", Origin=f"http://{own}", Sec_Fetch_Site="same-origin").status == 200
    assert server.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200  # a link to it
    answer = server.ask("GET", "/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"])
def test_forms_are_not_read(server: Any, nucleus: bytes, kind: str) -> None:
    assert server.ask("POST", "/v1/classify", nucleus, Content_Type=kind).status == 415
    assert server.ask("POST", "/page/folder/0/objects", b'{"objects": []}', Content_Type=kind).status == 415


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(server: Any, method: str) -> None:
    assert server.ask(method, "/v1/classify").status == 405


def test_nothing_outside_of_the_folder_is_served(start: Callable[..., Any], tmp_path: Path) -> None:
    folder, secret = tmp_path / "photos", tmp_path / "secret"
    folder.mkdir()
    secret.mkdir()
    picture = Image.fromarray(np.full((8, 8, 3), 7, np.uint8))
    picture.save(secret / "secret.png")
    picture.save(folder / "a.png")
    picture.save(folder / "later.png")
    (folder / "link.png").symlink_to(secret / "secret.png")
    (folder / "deep").symlink_to(secret)
    (folder / "text.png").write_text("not a picture")
    (folder / "text.txt").write_text("words")
    server = start(folder=str(folder))
    names = [p["name"] for p in server.ask("GET", "/page/folder").json()["pictures"]]
    assert names == ["a.png", "later.png", "text.png"]
    (folder / "later.png").unlink()
    (folder / "later.png").symlink_to(secret / "secret.png")  # changed behind its back
    assert server.ask("POST", "/page/folder/1/open").status == 404
    assert server.ask("POST", "/page/folder/2/open").status == 400
    found = server.ask("POST", "/page/search?text=red").json()["found"]
    assert {f["name"] for f in found} <= {"a.png", "later.png"}
    for path in (
        "/page/../../secret/secret.png",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "/page//etc/passwd",
        "/page/app.py",
    ):
        assert server.ask("GET", path).status == 404


def test_a_token_is_asked_for(start: Callable[..., Any]) -> None:
    server = start(token="s3cret")
    assert server.ask("GET", "/healthz").status == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "visionzoo_token=wrong"}, {"Cookie": "=;,"}):
        assert server.ask("GET", "/page/state", **headers).status == 401
    assert server.ask("GET", "/?token=wrong").status == 401
    assert server.ask("GET", "/page/state?token=s3cret").status == 401  # only the first page takes it
    assert server.ask("GET", "/page/state", Authorization="Bearer s3cret").status == 200
    opened = server.ask("GET", "/?token=s3cret")
    assert (opened.status, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert server.ask("GET", "/page/state", Cookie=cookie.split(";")[0]).status == 200


def test_which_addresses_are_this_machine() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.2", "host")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_names_of_hosts_have_no_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    """As browsers send them."""
    doors, ready = [], []
    demo = SimpleNamespace(bounds=SimpleNamespace(body=1))
    monkeypatch.setattr(run, "create_app", lambda demo, door: doors.append(door))
    monkeypatch.setattr(run._Server, "run", lambda server, sockets: (server._ready(), sockets[0].close()))
    run.serve(demo, host="0.0.0.0", port=0, token="t", names=["My-Desktop.local"], ready=ready.append)
    assert "my-desktop.local" in doors[0].hosts
    assert ready[0].startswith("http://my-desktop.local:")
    assert ready[0].endswith("/?token=t")


def test_somebody_elses_annotations_are_left_alone(tmp_path: Path) -> None:
    from visionzoo.serve.annotations import Annotations

    path = tmp_path / "instances_train.json"
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match="left as it is"):
        Annotations(path)


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_command_starts_and_stops_cleanly(stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "visionzoo", "demo", "--no-browser", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(stop)
    out, err = process.communicate(timeout=90)
    assert process.returncode in (0, -stop)
    assert "Traceback" not in out + err
