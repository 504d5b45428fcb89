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
from pathlib import Path

from benchmarks.client import Client
from benchmarks.report import ROOT


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


def demo_config() -> str:
    """Return the configuration of a server of the demo model, which computes on the CPU."""
    return '[models]\ndefault = "demo"\n[engine]\ndevices = "cpu"\n'


def klein_config(weights: Path, *, fast_path: bool = True) -> str:
    """Return the configuration of a server of a folder in the shapes of FLUX.2 Klein 4B, which computes on a GPU."""
    return f"""
        [models]
        default = "klein"
        cache_dir = "models"
        [[models.custom]]
        name = "klein"
        base = "flux2-klein-4b"
        path = "{weights.resolve()}"
        [[models.custom]]
        name = "flux2-klein-4b"
        base = "flux2-klein-4b"
        path = "{weights.resolve()}"
        [engine]
        devices = "gpu"
        fast_path = {str(fast_path).lower()}
    """


@contextmanager
def serving(folder: Path, config: str, model: str) -> Iterator[Client]:
    """Run a server in a folder for the length of a block; what it compiled is there for the next one."""
    output = folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(config, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "MLX_PTX_CACHE_DIR"}
    python_path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "mflux_api", "serve", "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder,
        env=environment | {"MFLUX_OUTPUT_DIR": str(output), "PYTHONPATH": python_path},
        stderr=(folder / "server.log").open("wb"),
    )
    try:
        wait_until_healthy(port)
        yield Client(f"http://127.0.0.1:{port}", model, output / "mflux-api.sqlite3")
    finally:
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
