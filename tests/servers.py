"""A range server on loopback for tests and benchmarks, with latency, bandwidth and faults."""

import asyncio
import random
import socket
import threading
import uuid
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 256 << 10
# Fewer than the attempts of one read, whichever of many requests meet the faults.
MOST_FAULTS = 5


class RangeServer:
    """Serves a folder's files by range, to whoever does not say who it is.

    Attributes:
        faults: Share of the range requests that are throttled, reset, cut short or answered with
            less than was asked; below 1, at most 5 times one after the other for one range.
        tags: Whether answers carry an ETag.
        weak: What makes it a weak one: `W/`.
        heads: Whether HEAD is allowed; with a signed address it may not be.
        ranges: Whether it knows ranges; whole files are sent without.
        silent: Whether requests are left without an answer, for as long as that is so.
        asked: Requests that came.
        seen: Bytes of the bodies sent whole, in order.
        failed: Kinds of the faults made.
    """

    def __init__(self, folder, *, latency=0.0, bandwidth=None, faults=0.0, seed=0, piece=PIECE):
        self.folder, self.latency, self.bandwidth = Path(folder), latency, bandwidth
        self.piece, self.silent, self.asked, self.tags = piece, False, 0, True
        self.weak, self.heads, self.ranges = "", True, True
        self.faults, self.draw = faults, random.Random(seed)
        self.seen, self.failed, self._in_a_row = [], [], Counter()
        self.url = ""

    async def start(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader, writer):
        try:
            while await self._answer(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader, writer):
        """Answer one request; return whether the connection stays."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = lines[0].split()
        self.asked += 1
        while self.silent:
            await asyncio.sleep(0.05)
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        path = self.folder / target.lstrip("/").partition("?")[0]
        if refusal := self._refusal(method, headers, path):
            writer.write(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        size, wanted = path.stat().st_size, self.ranges and headers.get("range")
        if method == "HEAD":
            writer.write(self._head(200, size, path))
            return True
        await asyncio.sleep(self.latency)
        begin, end = 0, size
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or size) + 1, size)
        fault = self._fault((target, wanted)) if wanted else None
        if fault == "throttle":
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return True
        with path.open("rb") as file:
            file.seek(begin)
            body = file.read(end - begin)
        part = f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n" if wanted else ""
        if fault == "less":  # and the head of the whole part
            body = body[: len(body) // 2]
        writer.write(self._head(206 if wanted else 200, len(body), path, part))
        if fault == "less":
            writer.write(body)
            return True
        if fault is not None:
            writer.write(body[: len(body) // 2])
            await writer.drain()
            link = writer.get_extra_info("socket")
            if fault == "reset":
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            # A forked process may hold the connection too: closing it here would not end it.
            link.shutdown(socket.SHUT_RDWR)
            return False
        self.seen.append(len(body))
        await self._send(writer, body)
        return True

    def _refusal(self, method, headers, path):
        if "authorization" in headers or not (self.heads or method == "GET"):
            return "403 Forbidden"
        return None if path.is_file() else "404 Not Found"

    def _head(self, status, length, path, more=""):
        changed = path.stat().st_mtime_ns
        tag = f'ETag: {self.weak}"{changed:x}"\r\n' if self.tags else ""
        return (
            f"HTTP/1.1 {status} OK\r\nContent-Length: {length}\r\n{tag}"
            f"Last-Modified: {formatdate(changed / 1e9, usegmt=True)}\r\n{more}\r\n"
        ).encode()

    def _fault(self, request):
        self._in_a_row[request] += 1
        spared = self.faults < 1 and self._in_a_row[request] > MOST_FAULTS
        if self.draw.random() >= self.faults or spared:
            del self._in_a_row[request]
            return None
        self.failed.append(self.draw.choice(["throttle", "reset", "short", "less"]))
        return self.failed[-1]

    async def _send(self, writer, body):
        clock = asyncio.get_running_loop().time
        start, view = clock(), memoryview(body)
        for at in range(0, len(body), self.piece):
            end = min(at + self.piece, len(body))
            writer.write(view[at:end])
            await writer.drain()
            if self.bandwidth:
                await asyncio.sleep(start + end / self.bandwidth - clock())


@contextmanager
def range_server(folder, **how):
    """Serve a folder from a thread until the block ends."""
    server, loop, ready = RangeServer(folder, **how), asyncio.new_event_loop(), threading.Event()

    async def serve():
        async with await server.start():
            ready.set()
            await asyncio.Event().wait()

    def run():
        task = loop.create_task(serve())
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            while left := asyncio.all_tasks(loop):  # a connection that just came makes another
                for one in left:
                    one.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(asyncio.sleep(0))  # connections that were lost are closed
        loop.close()

    stop = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not ready.wait(60):
        raise RuntimeError("the server did not start")
    try:
        yield server
    finally:
        stop[0]()
        thread.join(10)


@contextmanager
def hub_server(behind, token):
    """Answer as the Hugging Face Hub does: who has the token is sent on to another server."""

    class Front(BaseHTTPRequestHandler):
        def do_GET(self):
            _, _, path = self.path.partition("/datasets/owner/name/resolve/main/")
            known = self.headers["Authorization"] == f"Bearer {token}"
            self.send_response(302 if known and path else 401)
            self.send_header("Location", f"{behind.url}/{path}?signed=for-GET")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """moto's S3 on loopback, with a bucket of its own.

    Attributes:
        refuse: Called with a request's WSGI environment; returns the status of a fault, or None.
        seen: Method and path of every request.
        bucket: Its bucket's name.
        client: boto3's.
    """

    def __init__(self):
        import boto3
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.refuse, self.seen = lambda environ: None, []
        self._inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        how = {"args": (0.02,), "daemon": True}  # looks that often whether it should end
        self._thread = threading.Thread(target=self._server.serve_forever, **how)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        how = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **how)
        # obstore's clients and moto's objects live as long as the process, and ports come again.
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=self.bucket)

    def _answer(self, environ, start_response):
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        status = self.refuse(environ)
        if status is None:
            return self._inner(environ, start_response)
        start_response(status, [("Content-Type", "application/xml")])
        code = {"403": "AccessDenied", "503": "SlowDown"}.get(status[:3], "InternalError")
        return [f"<Error><Code>{code}</Code></Error>".encode()]

    def upload(self, paths, prefix=""):
        """Upload files and return their URLs."""
        for path in paths:
            self.client.upload_file(str(path), self.bucket, f"{prefix}{path.name}")
        return [f"s3://{self.bucket}/{prefix}{path.name}" for path in paths]

    def names(self):
        """Return the names of all objects."""
        return {o["Key"] for o in self.client.list_objects_v2(Bucket=self.bucket)["Contents"]}

    def close(self):
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
