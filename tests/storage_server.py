"""A real S3 server (moto, in a process of its own), and a proxy before it that can do what networks do."""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ACCESS, SECRET = "AKIAMASKPIPETEST0001", "a-secret-of-the-tests/+x"
BUCKET = "data"
Fault = Callable[["Request"], str | None]
"""What is to be done to a request: a name of Proxy._answer, or None."""


class Request:
    """A GET or HEAD as the proxy saw it."""

    def __init__(self, method: str, path: str, range_: str | None) -> None:
        self.method = method
        self.name = path.partition("?")[0].rpartition("/")[2]
        self.begin, self.end = (int(x) for x in range_.removeprefix("bytes=").split("-")) if range_ else (0, -1)


class Proxy:
    """Forwards to the server. `fault` may spoil an answer; `requests` keeps what was asked, in order."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.fault: Fault = lambda request: None
        self.requests: list[Request] = []
        self.release = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is what some tests are about."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=lambda: self.server.serve_forever(0.02), daemon=True).start()

    def clear(self) -> None:
        self.fault = lambda request: None
        self.requests.clear()
        self.release.clear()

    def gets(self) -> list[Request]:
        """Of shards."""
        return [r for r in self.requests if r.method == "GET" and r.name.endswith(".arrow")]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = Request(handler.command, handler.path, handler.headers.get("Range"))
        self.requests.append(request)
        fault = self.fault(request)
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        if fault in ("500", "503", "403"):
            handler.send_response(int(fault))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "hang":
            self.release.wait(20)
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream)
        try:
            upstream.request(handler.command, handler.path, headers=dict(handler.headers.items()))
            answer = upstream.getresponse()
            body = answer.read()
        finally:
            upstream.close()
        handler.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                handler.send_header(key, value)
        handler.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "truncate":
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif fault == "flip":
            spoiled = bytearray(body)
            spoiled[len(body) // 3] ^= 4
            handler.wfile.write(spoiled)
        elif fault == "slow":
            for at in range(0, len(body), len(body) // 4 + 1):
                handler.wfile.write(body[at : at + len(body) // 4 + 1])
                handler.wfile.flush()
                time.sleep(0.02)
        else:
            handler.wfile.write(body)


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """Skips where moto's server is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
        pytest.skip("needs an S3 server: pip install 'moto[s3]' flask flask-cors (in the extra `test`)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.05)
        yield Proxy(port)
    finally:
        process.terminate()
        process.wait(20)


def upload(proxy: Proxy, directory: Path, name: str) -> None:
    """Puts the files of a directory below the bucket, past the proxy."""
    from pyarrow import fs

    s3 = fs.S3FileSystem(
        access_key=ACCESS, secret_key=SECRET, endpoint_override=f"127.0.0.1:{proxy.upstream}", scheme="http",
        region="us-east-1", allow_bucket_creation=True,
    )  # fmt: skip
    s3.create_dir(BUCKET)
    for path in sorted(directory.iterdir()):
        with s3.open_output_stream(f"{BUCKET}/{name}/{path.name}") as out:
            out.write(path.read_bytes())


def uri(proxy: Proxy, name: str) -> str:
    return f"s3://{BUCKET}/{name}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1%3A{proxy.port}"


def environment() -> dict[str, str]:
    """What the S3 client finds its credentials in."""
    return {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


def child_environment() -> dict[str, str]:
    return {**os.environ, **environment()}
