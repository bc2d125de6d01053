"""A hub of the Hugging Face kind on this machine's loopback, with faults on demand."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 39 + "1"


class Hub:
    """Serves ``files`` (path in a repository, of any name and revision, to bytes); a context manager.

    cut_after: the first answers end after so many bytes, as many of them as the list is long. delay: seconds between
    blocks. redirect: large files are handed on to another path, as the real hub does. status: answer this instead,
    with this ``X-Error-Code``. ignore_ranges: always answer with the whole file. small: tags are git names, which say
    nothing of the content.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.cut_after: list[int] = []
        self.delay, self.redirect, self.ignore_ranges, self.small = 0.0, False, False, False
        self.status: tuple[int, str] | None = None
        self.lie: bytes | None = None  # served instead of what the tag says
        self.requests: list[tuple[str, str, str | None]] = []

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body: bool) -> None:
        wanted = request.headers.get("Range")
        self.requests.append((request.command, request.path, wanted))
        name = re.sub(r".*/resolve/[^/]+/|/cdn/", "", request.path)
        content = self.files.get(name)
        if self.status or content is None:
            status, code = self.status or (404, "EntryNotFound")
            self._head(request, status, {"X-Error-Code": code, "Content-Length": "0"})
            return
        tag = hashlib.sha256(content).hexdigest() if not self.small else hashlib.sha1(content).hexdigest()
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        if self.redirect and not request.path.startswith("/cdn/"):
            self._head(request, 302, {**linked, "Location": f"{self.address}/cdn/{name}", "Content-Length": "0"})
            return
        sent = self.lie if body and self.lie is not None else content
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if body and wanted and not self.ignore_ranges else 0
        ranges = {"Content-Range": f"bytes {start}-{len(sent) - 1}/{len(sent)}"} if start else {}
        headers = {**linked, **ranges, "ETag": f'"{tag}"', "Content-Length": str(len(sent) - start)}
        self._head(request, 206 if start else 200, headers)
        if body:
            self._send(request, sent[start:])

    @staticmethod
    def _head(request, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        # Said, because a client that keeps a connection finds it gone at some request, and at which is a race.
        for name, value in {**headers, "Connection": "close"}.items():
            request.send_header(name, value)
        request.end_headers()

    def _send(self, request, content: bytes) -> None:
        end = self.cut_after.pop(0) if self.cut_after else len(content)
        try:
            for start in range(0, end, 1 << 16):
                request.wfile.write(content[start : min(start + (1 << 16), end)])
                time.sleep(self.delay)
        except (BrokenPipeError, ConnectionResetError):
            pass
