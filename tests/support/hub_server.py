"""A small model hub: the endpoints that huggingface_hub uses, and faults on demand.

It runs in a thread of the test process and speaks plain HTTP: model info, tree, and files with ETag and Range.
"""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000
"""Files of at least this size are "LFS" files: their name on the hub is their SHA-256."""
CHUNK = 16_384

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPO}(?:/revision/(?P<revision>.+))?")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"(?P<elsewhere>/elsewhere)?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@attrs.define(kw_only=True)
class Faults:
    """What is wrong with the hub."""

    gated: bool = False
    forbidden: bool = False
    """403 without the hub's own explanation."""
    wrong_token: bool = False
    """Whatever token comes is not one, also where none is needed."""
    missing: bool = False
    busy: bool = False
    """503 on everything."""
    bytes_per_second: float | None = None
    """How fast large files come; all of them together."""
    cut_after: int | None = None
    """A large file's connection breaks after so many bytes, each time."""
    short_by: int = 0
    """Large files are served so much shorter than the listing says."""
    flipped: bool = False
    """Large files have one other byte."""
    claimed_size: int | None = None
    """What the listing says of every large file's size."""
    without_ranges: bool = False
    redirected: bool = False
    """Large files lie on another host, as on the real hub, and the hub's own answer has only their description."""


@attrs.define(kw_only=True)
class Hub:
    """A running hub, its repositories and what was asked of it."""

    url: str
    repositories: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    commits: dict[str, str] = attrs.field(factory=dict)
    faults: Faults = attrs.field(factory=Faults)
    requests: list[str] = attrs.field(factory=list)
    """Method and path of every request."""
    sent: dict[str, int] = attrs.field(factory=dict)
    """Bytes of content sent, by file."""
    ranges: list[str] = attrs.field(factory=list)
    """Every Range header."""
    tokens: set[str | None] = attrs.field(factory=set)

    def add(self, repo: str, folder: Path, commit: str = COMMIT) -> None:
        """Serve a folder as a repository."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.repositories[repo] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.commits[repo] = commit

    def total(self, repo: str) -> int:
        """Return the size of a repository."""
        return sum(map(len, self.repositories[repo].values()))

    def total_sent(self) -> int:
        """Return how many bytes of content went out."""
        return sum(self.sent.values())

    def environ(self) -> dict[str, str]:
        """Return what makes huggingface_hub come here."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "3"}


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="hub")
    thread.start()
    try:
        yield server.hub
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    hub: Hub

    def __init__(self, *arguments: Any) -> None:
        self.ending = threading.Event()
        self.pace = threading.Lock()
        super().__init__(*arguments)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 5

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name that the base class gave it
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        path = urlsplit(self.path)
        hub.requests.append(f"{self.command} {path.path}")
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.faults.busy:
            self._reply(503, b"{}")
        elif hub.faults.forbidden:
            self._reply(403, b"{}")
        elif match := _FILE.fullmatch(path.path):
            self._file(match["repo"], match["revision"], unquote(match["name"]), elsewhere=bool(match["elsewhere"]))
        elif match := _TREE.fullmatch(path.path):
            self._tree(match["repo"], match["revision"])
        elif match := _INFO.fullmatch(path.path):
            self._info(match["repo"], match["revision"], blobs="blobs" in parse_qs(path.query))
        else:
            self._reply(404, b"{}")

    def _known(self, repo: str, revision: str | None) -> bool:
        hub = self.server.hub
        if hub.faults.wrong_token and self.headers.get("Authorization") is not None:
            self._reply(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return False
        if repo not in hub.repositories or hub.faults.missing:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return False
        if revision not in (None, "main", hub.commits[repo]):
            self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return False
        return True

    def _info(self, repo: str, revision: str | None, *, blobs: bool) -> None:
        if not self._known(repo, unquote(revision) if revision else None):
            return
        files = self.server.hub.repositories[repo]
        siblings = [{"rfilename": name, **(self._described(data) if blobs else {})} for name, data in files.items()]
        info = {"id": repo, "modelId": repo, "sha": self.server.hub.commits[repo], "siblings": siblings, "tags": []}
        self._reply(200, json.dumps(info).encode())

    def _tree(self, repo: str, revision: str) -> None:
        if not self._known(repo, revision):
            return
        files = self.server.hub.repositories[repo]
        entries = []
        for name, data in files.items():
            described = self._described(data)
            entry = {"type": "file", "path": name, "size": described["size"], "oid": described["blobId"]}
            if "lfs" in described:
                entry["lfs"] = {"oid": described["lfs"]["sha256"], "size": described["size"], "pointerSize": 134}
            entries.append(entry)
        self._reply(200, json.dumps(entries).encode())

    def _described(self, data: bytes) -> dict[str, Any]:
        described: dict[str, Any] = {"size": self._claimed(data), "blobId": hashlib.sha1(data).hexdigest()}
        if len(data) >= LARGE:
            described["lfs"] = {"sha256": _etag(data), "size": described["size"], "pointerSize": 134}
        return described

    def _claimed(self, data: bytes) -> int:
        claimed = self.server.hub.faults.claimed_size
        return claimed if claimed is not None and len(data) >= LARGE else len(data)

    def _file(self, repo: str, revision: str, name: str, *, elsewhere: bool) -> None:
        hub, faults = self.server.hub, self.server.hub.faults
        if not self._known(repo, revision):
            return
        if elsewhere and self.headers.get("Authorization") is not None:
            self._reply(400, b"a token has no business here")
            return
        if faults.gated and not elsewhere and self.headers.get("Authorization") is None:
            self._reply(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        data = hub.repositories[repo].get(name)
        if data is None:
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commits[repo]})
            return
        large = len(data) >= LARGE
        if large and faults.redirected and not elsewhere:
            described = {
                "Location": f"http://localhost:{self.server.server_port}/elsewhere{self.path}",
                "X-Linked-Etag": f'"{_etag(data)}"',
                "X-Linked-Size": str(self._claimed(data)),
                "X-Repo-Commit": hub.commits[repo],
            }
            self._reply(302, b"", described)
            return
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": hub.commits[repo], "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._reply(200, b"", {**headers, "Content-Length": str(self._claimed(data))})
            return
        if large and faults.short_by:
            data = data[: -faults.short_by]
        if large and faults.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted is not None and not faults.without_ranges:
            hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self._reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(status, data[start:], headers, name, faults if large else Faults())

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], name: str, faults: Faults) -> None:
        hub = self.server.hub
        self._head(status, {**headers, "Content-Length": str(len(data))})
        for begin in range(0, len(data), CHUNK):
            if faults.cut_after is not None and begin >= faults.cut_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            chunk = data[begin : begin + CHUNK]
            if faults.bytes_per_second is not None:
                with self.server.pace:
                    if self.server.ending.wait(len(chunk) / faults.bytes_per_second):
                        return
            self.wfile.write(chunk)
            hub.sent[name] = hub.sent.get(name, 0) + len(chunk)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        # No idle connection may hold up the end of a test.
        self.send_header("Connection", "close")
        self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(data: bytes) -> str:
    return (hashlib.sha256 if len(data) >= LARGE else hashlib.sha1)(data).hexdigest()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something in another process that has no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
