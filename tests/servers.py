"""Servers on loopback for tests and benchmarks: an S3 (moto's) and ranges with faults."""

import random
import socket
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder's files by range, with set latency, bandwidth and faults.

    Attributes:
        seen: Bytes sent as bodies, and requests, in order.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder, *, latency=0.0, bandwidth=None, faults=0.0, seed=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency, self.bandwidth = Path(folder), latency, bandwidth
        self.faults, self.draw = faults, random.Random(seed)
        self.seen, self.failed = [], []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self):
        with self.lock:
            if self.draw.random() >= self.faults:
                return None
            kind = self.draw.choice(["throttle", "reset", "short"])
            self.failed.append(kind)
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        path = self._path()
        if path is not None:
            self._head(200, path.stat().st_size, path)

    def do_GET(self):
        path = self._path()
        if path is None:
            return
        time.sleep(self.server.latency)
        size, wanted = path.stat().st_size, self.headers.get("Range")
        begin, end = 0, size
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, size)
        fault = self.server.fault() if wanted else None
        if fault == "throttle":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            file.seek(begin)
            body = file.read(end - begin)
        self._head(206 if wanted else 200, len(body), path, f"bytes {begin}-{end - 1}/{size}")
        if fault is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return
        self._send(body)
        with self.server.lock:
            self.server.seen.append(len(body))

    def _send(self, body):
        rate, piece = self.server.bandwidth, 256 << 10
        start = time.perf_counter()
        for at in range(0, len(body), piece):
            self.wfile.write(body[at : at + piece])
            if rate:
                due = start + (at + piece) / rate
                time.sleep(max(due - time.perf_counter(), 0))

    def _path(self):
        path = self.server.folder / self.path.lstrip("/")
        if path.is_file():
            return path
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _head(self, status, length, path, content_range=None):
        changed = path.stat().st_mtime_ns
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{changed:x}"')
        self.send_header("Last-Modified", formatdate(changed / 1e9, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()


@contextmanager
def range_server(folder, **how):
    """Serve a folder until the block ends."""
    server = RangeServer(folder, **how)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
