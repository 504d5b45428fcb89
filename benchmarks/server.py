"""A server for one benchmark, with an output folder of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def free_port() -> int:
    """Return a port on which no program listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running_server(
    command: Sequence[str] = (sys.executable, "-m", "mflux_api"), arguments: Sequence[str] = ()
) -> Iterator[tuple[int, int]]:
    """Start a server with an output directory of its own and wait for its health; yields its port and process id."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [*command, "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error", *arguments],
            env=os.environ | {"MFLUX_OUTPUT_DIR": folder},
        )
        try:
            wait_until_healthy(port)
            yield port, server.pid
        finally:
            server.terminate()
            time.sleep(1.1)
            server.terminate()
            server.wait()


def wait_until_healthy(port: int) -> None:
    """Poll until the server answers."""
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/health", timeout=1) as answer:
                answer.read()
                return
        except OSError:
            time.sleep(0.005)
