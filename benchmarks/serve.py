"""How many pictures does the server name in a second, against one batch in Python?

    python benchmarks/serve.py [--classify RUN] [--images FOLDER] [--requests 200] [--clients 16] [--rounds 5]

The server and its clients are processes of their own: clients in the server's process would share its interpreter lock.
One thread asks for all clients, each over its own connection, so that asking costs little. Batch, server, batch, ...:
the ratio of a round is between neighbours. Requests and images are the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).resolve().parent / "results"


def pictures(folder: str | None, count: int) -> list[bytes]:
    """``count`` files of a folder, or handwritten digits; the same again where there are fewer."""
    if folder is not None:
        files = [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()][:count]
    else:
        from sklearn.datasets import load_digits

        files = []
        for digit in load_digits().images[:count]:
            out = io.BytesIO()
            Image.fromarray((digit * 15).astype(np.uint8)).save(out, "PNG")
            files.append(out.getvalue())
    return [files[i % len(files)] for i in range(count)]


def ask_all(port: int, bodies: list[bytes], clients: int) -> list[float]:
    """Seconds of each request, all of them answered with 200."""
    waiting, todo, seconds = selectors.DefaultSelector(), iter(bodies), []

    def send(connection: socket.socket) -> None:
        if (body := next(todo, None)) is None:
            connection.close()
            return
        head = f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/png\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        waiting.register(connection, selectors.EVENT_READ, [b"", time.perf_counter()])

    for _ in range(clients):
        send(socket.create_connection(("127.0.0.1", port)))
    while waiting.get_map():
        for key, _ in waiting.select(60):
            key.data[0] += key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            head, _, body = key.data[0].partition(b"\r\n\r\n")
            if b"content-length: " not in head or len(body) < int(head.split(b"content-length: ")[1].split(b"\r")[0]):
                continue
            if b" 200 " not in head[:16]:
                raise SystemExit(f"the server answered {head[:16]!r} {body[:200]!r}")
            seconds.append(time.perf_counter() - key.data[1])
            waiting.unregister(key.fileobj)
            send(key.fileobj)  # type: ignore[arg-type]
    return seconds


def cpu_seconds(process: int) -> float:
    """That a process has used (Linux)."""
    return sum(map(int, Path(f"/proc/{process}/stat").read_text().split()[13:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the rounds and write benchmarks/results/serve.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classify", default="embedded")
    parser.add_argument("--images")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        from visionzoo.serve.demo import Demo, DemoOptions
        from visionzoo.serve.run import serve

        serve(Demo(DemoOptions(classify=args.classify, device="cpu")), port=0, ready=lambda a: print(a, flush=True))
        return
    from harness import machine

    import visionzoo as vz

    bodies = pictures(args.images, args.requests)
    command = [sys.executable, __file__, "--serve", "--classify", args.classify]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rounds: list[dict[str, Any]] = []
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rstrip("/\n").rsplit(":", 1)[1])
        classifier = vz.ImageClassifier.load(args.classify, "cpu")
        for warm_up in (True, *[False] * args.rounds):
            start, used = time.perf_counter(), time.process_time()
            classifier.predict(bodies)
            batch, batch_cpu = time.perf_counter() - start, time.process_time() - used
            start, used = time.perf_counter(), cpu_seconds(server.pid)
            seconds = sorted(ask_all(port, bodies, args.clients))
            served, served_cpu = time.perf_counter() - start, cpu_seconds(server.pid) - used
            if not warm_up:
                rounds.append(
                    {
                        "throughput_ratio": batch / served,
                        "cpu_ratio": batch_cpu / served_cpu,
                        "batch_per_second": len(bodies) / batch,
                        "served_per_second": len(bodies) / served,
                        "p50_ms": 1e3 * seconds[len(seconds) // 2],
                        "p95_ms": 1e3 * seconds[int(0.95 * len(seconds))],
                    }
                )
                print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    medians = {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}
    case = {"classify": args.classify, "requests": args.requests, "clients": args.clients, "median": medians}
    path = RESULTS / "serve.json"
    record = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    record["cases"][Path(args.classify).name] = {**case, "machine": machine()}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(medians)


if __name__ == "__main__":
    main()
