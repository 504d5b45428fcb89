"""The server that is fuzzed: started here on a free port, or one that runs already; its health and what it holds."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import psutil

_CONFIG = '[models]\ndefault = "demo"\nauto_download = false\n[server]\ndrain_timeout_seconds = 5.0\n'
_START_SECONDS = 120.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 15.0
_SETTLE_SECONDS = 10.0
"""Within this time a server has to have given back what an attack made it take (issue: 10 s)."""
_MORE_FILES = 8
_MORE_BYTES = 200 * 2**20
_MORE_BYTES_OF_CHILDREN = 400 * 2**20
"""An engine keeps the embeddings of prompts, and what its allocator keeps of larger images."""


@attrs.frozen
class Held:
    """What a server holds, and its children."""

    files: int
    memory: int
    children: int
    """Bytes in memory of the engine, and of whatever else it has started."""

    def __str__(self) -> str:
        return f"{self.files} descriptors, {self.memory >> 20} MB and {self.children >> 20} MB in children"


class Target:
    """A server as the fuzzer sees it.

    Args:
        url: where it listens.
        pid: its process, where it is on this machine; what it holds can be seen then.
        log: the file that its standard error goes to, where that is known.
        key: an API key of it, for requests whose HTTP is right.
    """

    def __init__(self, url: str, pid: int | None = None, log: Path | None = None, key: str | None = None) -> None:
        self.key = key
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._process = None if pid is None else psutil.Process(pid)
        self._log, self._read = log, 0

    def alive(self) -> bool:
        """Whether its process is there, as far as that can be seen."""
        return self._process is None or (self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)

    def held(self) -> Held | None:
        """Return what it holds, its children too; ``None`` where that cannot be seen."""
        if self._process is None or not self.alive():
            return None
        children = 0
        for process in self._process.children(recursive=True):
            # One that ends meanwhile holds nothing.
            with contextlib.suppress(psutil.NoSuchProcess):
                children += process.memory_info().rss
        return Held(self._process.num_fds(), self._process.memory_info().rss, children)

    def settled(self, before: Held) -> Held | None:
        """Wait until it holds no more than before, with some room; return what it still holds when the time is over."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            now = self.held()
            if now is None:
                return None
            if (
                now.files <= before.files + _MORE_FILES
                and now.memory <= before.memory + _MORE_BYTES
                and now.children <= before.children + _MORE_BYTES_OF_CHILDREN
            ):
                return None
            if time.monotonic() > deadline:
                return now
            time.sleep(_POLL_SECONDS)

    def new_tracebacks(self) -> list[str]:
        """Return the log's tracebacks and errors since the last call."""
        if self._log is None:
            return []
        with self._log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        lines = text.decode("utf-8", "replace").splitlines()
        return [line for line in lines if "Traceback" in line or " ERROR " in line]


class Pulse:
    """Asks for the server's health all the time, over one connection; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse")
        self.seconds: list[float] = []
        """How long each answer took; one that failed is endless."""

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._ended.wait(_POLL_SECONDS):
            began = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection(self._target.host, self._target.port, timeout=30)
                connection.request("GET", "/api/v1/health")
                answer = connection.getresponse()
                answer.read()
                taken = time.monotonic() - began if answer.status == 200 else float("inf")
            except (OSError, http.client.HTTPException):
                connection, taken = None, float("inf")
            self.seconds.append(taken)
        if connection is not None:
            connection.close()

    def quantile(self, part: float) -> float:
        """Return how long the answer took that is slower than so large a part of them."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


@contextmanager
def started() -> Iterator[Target]:
    """Start a server with the embedded model on a free port of loopback, in a folder that goes with it.

    Raises:
        SystemExit: it does not start, or did not end when it was told to.
    """
    with tempfile.TemporaryDirectory(prefix="mflux-api-fuzz-") as name:
        folder = Path(name)
        (folder / "config.toml").write_text(_CONFIG, "utf-8")
        log = folder / "log"
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MFLUX_")}
        command = [sys.executable, "-P", "-m", "mflux_api", "serve", "--host", "127.0.0.1", "--port", "0"]
        root = str(Path(__file__).resolve().parents[2])
        with log.open("wb") as stream:
            process = subprocess.Popen(command, cwd=folder, env=environ | {"PYTHONPATH": root}, stderr=stream)
        try:
            yield Target(_address(process, log), process.pid, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise SystemExit(f"the server did not end within {_STOP_SECONDS:g} s of SIGTERM") from None
            if process.returncode != 0:
                raise SystemExit(f"the server ended with status {process.returncode}: {log.read_bytes()[-2000:]!r}")


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (found := re.search(r"listening on (http://\S+)", log.read_text("utf-8", "replace"))) is not None:
            return found.group(1)
        time.sleep(_POLL_SECONDS)
    raise SystemExit(f"the server did not start: {log.read_text('utf-8', 'replace')[-2000:]}")
