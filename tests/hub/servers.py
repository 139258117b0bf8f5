"""A web server on this machine that acts as a hub and as a plain server, and fails on request."""

import hashlib
import json
import threading
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 1000  # bytes; larger files are stated by SHA-256, as those in LFS are
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:322a9fba55cb0e97e1a633981fbbdff20577af69146a0f23fa7b14201459a13f\nsize 1228836570\n"
)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


class Server:
    """Serve `files`: by "owner/name/path" as a hub does, and by "plain/path" as a plain server does.

    Attributes:
        faults: by file, how its next answers fail, in order; the last one stays where `forever` names the file.
        requests: what was asked for.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.forever: set[str] = set()
        self.requests: list[Request] = []
        self.release = threading.Event()  # ends the wait of stalled answers
        self.three = threading.Barrier(3)
        self.redirect_to = ""  # another server; this one by default
        self.gates: set[str] = set()  # repositories that need a token
        outer = self

        class Handler(_Handler):
            server_of_test = outer

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._httpd.server_port}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self):
        self.release.set()
        self._httpd.shutdown()
        self._httpd.server_close()

    def fail(self, key: str, *faults: str, forever: bool = False):
        """Let the next answers for a file fail; with `forever`, the last fault stays."""
        self.faults[key] = list(faults)
        if forever:
            self.forever.add(key)

    def next_fault(self, key: str) -> str | None:
        faults = self.faults[key]
        if not faults:
            return None
        return faults[0] if key in self.forever and len(faults) == 1 else faults.pop(0)

    def reads(self, name: str) -> list[Request]:
        """Return the GET requests for files whose path ends with `name`."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        server, path = self.server_of_test, unquote(urlsplit(self.path).path).strip("/")
        server.requests.append(Request(self.command, path, self.headers["Range"], self.headers["Authorization"]))
        parts = path.split("/")
        if parts[0] == "api":
            commits = [{"id": COMMIT, "authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}]
            known = any(key.startswith("/".join(parts[2:4]) + "/") for key in server.files)
            status = 200 if parts[-2] == "commits" and known else 404
            headers = {"Content-Type": "application/json", "X-Error-Code": "" if known else "RepoNotFound"}
            self._send(status, json.dumps(commits).encode(), headers, body)
        elif parts[0] == "plain":
            self._file(path, server.files.get(path), {}, body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._hub("/".join(parts[:2]), "/".join(parts[4:]), body)
        else:
            self._send(404, b"", {}, body)

    def _hub(self, repository: str, path: str, body: bool):
        server, key = self.server_of_test, f"{repository}/{path}"
        if not any(name.startswith(repository + "/") for name in server.files):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif repository in server.gates and self.headers["Authorization"] != "Bearer secret":
            self._send(401, b"", {"X-Error-Code": "GatedRepo"}, body)
        elif key not in server.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        else:
            content = server.files[key]
            headers = {"X-Repo-Commit": COMMIT}
            if len(content) >= LFS_FROM:
                headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
                headers |= {"X-Linked-Size": str(len(content))}
            else:
                blob = b"blob %d\0" % len(content) + content
                headers["ETag"] = f'"{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"'
            self._file(key, content, headers, body)

    def _file(self, key: str, content: bytes | None, headers: dict[str, str], body: bool):
        server = self.server_of_test
        if content is None:
            self._send(404, b"", headers, body)
            return
        if "ETag" not in headers:
            headers = {**headers, "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'}
        # What a hub states comes with HEAD; faults are of the content, those that begin with "head" of both.
        fault = (
            server.next_fault(key)
            if body or (server.faults[key] and server.faults[key][0].startswith("head"))
            else None
        )
        fault = fault.removeprefix("head ") if fault else None
        if fault == "together":  # with two others
            try:
                server.three.wait(20)
            except threading.BrokenBarrierError:
                fault = "404"
        if fault in ("403", "404", "503"):
            self._send(int(fault), b"", headers, body)
        elif fault == "page":
            self._send(200, HTML, {"Content-Type": "text/html; charset=utf-8"}, body)
        elif fault == "page as data":
            self._send(200, HTML, headers, body)
        elif fault == "pointer":
            self._send(200, POINTER, headers, body)
        elif fault == "changed":
            self._send(200, bytes(len(content)), headers, body)
        elif fault == "redirect":
            self._send(302, b"", {**headers, "Location": f"{server.redirect_to or server.url}/plain/moved"}, body)
        elif fault == "redirect loop":
            self._send(302, b"", {**headers, "Location": self.path}, body)
        elif fault == "no length":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self._ranged(content, headers, body, fault)

    def _ranged(self, content: bytes, headers: dict[str, str], body: bool, fault: str | None):
        status, start = 200, 0
        asked = self.headers["Range"]
        if asked and fault != "ignore range":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body)
                return
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        rest = content[start:]
        if fault in ("truncated", "stalled", "silent"):
            self._head(status, len(rest), headers)
            self.wfile.write(b"" if fault == "silent" else rest[: len(rest) // 2])
            self.wfile.flush()
            if fault != "truncated":
                self.server_of_test.release.wait(20)
            self.close_connection = True
        else:
            self._send(status, rest, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool):
        self._head(status, len(content), headers)
        if body:
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
