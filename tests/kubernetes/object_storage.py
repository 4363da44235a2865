"""An S3 of its own on loopback: as much of the protocol as Snakemake's plugin speaks, all in memory."""

import hashlib
import threading
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import gmtime, strftime, time
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class ObjectStorage(ThreadingHTTPServer):
    """Buckets of objects by key; an object is its bytes and the time when they came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.buckets: dict[str, dict[str, tuple[bytes, float]]] = {}
        self.answered = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """The bytes of all objects below a prefix, by the rest of their keys."""
        objects = self.buckets.get(bucket, {}).items()
        return {key.removeprefix(prefix): data for key, (data, _) in objects if key.startswith(prefix)}


class Requests(BaseHTTPRequestHandler):
    """Path-style requests; signatures are not looked at."""

    protocol_version = "HTTP/1.1"
    server: ObjectStorage

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_PUT(self) -> None:
        bucket, key, _ = self._asked()
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        objects = self.server.buckets.setdefault(bucket, {})
        if key:
            objects[key] = (data, time())
        self._answer(200, headers={"ETag": _etag(data)})

    def do_DELETE(self) -> None:
        bucket, key, _ = self._asked()
        if key:
            self.server.buckets.get(bucket, {}).pop(key, None)
        else:
            self.server.buckets.pop(bucket, None)
        self._answer(204)

    def log_message(self, *_) -> None:
        """Nothing on the test's stderr."""

    def _asked(self) -> tuple[str, str, dict[str, list[str]]]:
        self.server.answered += 1
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, parse_qs(parts.query)

    def _read(self) -> None:
        bucket, key, query = self._asked()
        objects = self.server.buckets.get(bucket)
        if objects is None or (key and key not in objects):
            code = "NoSuchKey" if key else "NoSuchBucket"
            self._answer(404, f"<Error><Code>{code}</Code></Error>".encode())
        elif key:
            data, came = objects[key]
            self._answer(200, data, {"ETag": _etag(data), "Last-Modified": formatdate(came, usegmt=True)})
        else:
            self._answer(200, _listing(objects, query.get("prefix", [""])[0]))

    def _answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _listing(objects: dict[str, tuple[bytes, float]], prefix: str) -> bytes:
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
        f"<LastModified>{strftime('%Y-%m-%dT%H:%M:%S.000Z', gmtime(came))}</LastModified></Contents>"
        for key, (data, came) in sorted(objects.items())
        if key.startswith(prefix)
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def serving(server: ThreadingHTTPServer):
    """The server while it answers."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
