"""A server for tests that speaks as much of Google Cloud Storage's JSON protocol as runs in a bucket need.

Objects lie in memory. Every write makes a new generation, and conditions on generations are kept: what writes
checkpoints relies on them.
"""

import contextlib
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class Object(NamedTuple):
    content: bytes
    generation: int
    written: str


class Failed(Exception):
    """A request that is answered with an error's number."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for 40 ms
    server: "Server"

    def log_message(self, *_):
        """Says nothing."""

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        try:
            status, headers, content = self.server.answer(self.command, self.path, self.headers, body)
        except Failed as error:
            (status,) = error.args
            content = json.dumps({"error": {"code": status, "message": f"{self.path}: {status}"}}).encode()
            headers = {"Content-Type": "application/json"}
        content = b"" if status in (204, 304) else content
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    do_GET = do_POST = do_PUT = do_DELETE = _answer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    names: ClassVar = ("bucket",)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str], Object] = {}
        self.uploads: dict[str, str] = {}
        self.count = itertools.count(1)
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, method, path, headers, body):
        """The status, headers and content that answer a request."""
        url = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/(.+))?)?", url.path)
        if not found or found[2] not in self.names:
            raise Failed(404)
        bucket, name = found[2], unquote(found[4] or "")
        with self.lock:
            if found[1] == "/upload":
                return self._upload(bucket, query, headers, body)
            if not found[3]:
                return self._json({"kind": "storage#bucket", "name": bucket})
            if not name:
                return self._json(self._list(bucket, **query))
            there = self.objects.get((bucket, name))
            self._check(there, query)
            if there is None:
                raise Failed(404)
            if method == "DELETE":
                del self.objects[bucket, name]
                return 204, {}, b""
            if found[1] or query.get("alt") == "media":
                return self._content(there, headers)
            return self._json(self._resource(bucket, name))

    @staticmethod
    def _json(value):
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    @staticmethod
    def _check(there, query):
        generation = there.generation if there else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Failed(412)
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            raise Failed(304)

    @staticmethod
    def _content(there, headers):
        about = {"x-goog-generation": str(there.generation), "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
        if not asked or not there.content:
            return 200, about, there.content
        size = len(there.content)
        begin = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
        if begin >= size:
            raise Failed(416)
        return 206, {**about, "Content-Range": f"bytes {begin}-{end - 1}/{size}"}, there.content[begin:end]

    def _resource(self, bucket, name):
        there = self.objects[bucket, name]
        facts = {"bucket": bucket, "name": name, "size": str(len(there.content)), "generation": str(there.generation)}
        return {"kind": "storage#object", "metageneration": "1", "updated": there.written, **facts}

    def _list(self, bucket, prefix="", delimiter="", startOffset="", endOffset="", **_):
        items, prefixes = [], set()
        for where, name in sorted(self.objects):
            if (
                where != bucket
                or not name.startswith(prefix)
                or name < startOffset
                or (endOffset and name >= endOffset)
            ):
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self._resource(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _upload(self, bucket, query, headers, body):
        if upload := query.get("upload_id"):  # in one piece, as files here are small
            name = self.uploads[upload]
        elif query["uploadType"] == "resumable":
            name, upload = query.get("name") or json.loads(body)["name"], str(next(self.count))
            self.uploads[upload] = name
            return 200, {"Location": f"{self.address}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"}, b""
        elif query["uploadType"] == "multipart":
            about, body = self._parts(headers, body)
            name = json.loads(about)["name"]
        else:
            name = query["name"]
        self._check(self.objects.get((bucket, name)), query)
        self.objects[bucket, name] = Object(
            body, next(self.count), time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        )
        return self._json(self._resource(bucket, name))

    @staticmethod
    def _parts(headers, body):
        """What stands in each part of a multipart body, byte for byte."""
        found = re.search(r"""boundary=["']?([^"';]+)""", headers["Content-Type"])
        assert found, headers["Content-Type"]
        parts = re.split(rb"(?:^|\r?\n)--" + re.escape(found[1].encode()) + rb"(?:--)?[^\S\n]*\r?\n?", body)
        return [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts if part.strip()]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of the only bucket of a server that is taken for Google's, in this process and those it starts."""
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google itself what kind a bucket is
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield "gs://bucket"
        server.shutdown()
        thread.join()
