"""Server processes for tests, and a client that holds every answer against the OpenAPI document."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import httpx
import jsonschema
import psutil

from mflux_api.http.openapi import describe
from mflux_api.machine import DEVICES_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
ENGINE_SECONDS = 20.0
DEMO_CONFIG = '[models]\ndefault = "demo"\n'
"""A configuration whose default model is the embedded one."""


@attrs.define
class Server:
    """A running ``mflux-api serve``."""

    process: "subprocess.Popen[str]"
    url: str
    folder: Path
    lines: list[str]
    """The lines it has logged so far."""

    def children(self) -> list[psutil.Process]:
        """Return its child processes: the engine's."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, kind: signal.Signals = signal.SIGTERM, seconds: float = 40.0) -> int:
        """End it and return its exit status."""
        self.process.send_signal(kind)
        return self.process.wait(seconds)


@contextmanager
def serving(
    folder: Path,
    config: str = "",
    environ: Mapping[str, str] | None = None,
    *,
    host: str = "127.0.0.1",
    module: str = "mflux_api",
    wrapper: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server whose working directory, state and output are in ``folder``.

    Args:
        folder: working directory; it gets the configuration file.
        config: content of the configuration file.
        environ: environment variables besides those of :func:`clean_environment`.
        host: the address to listen on.
        module: what is run in place of the product's own command line.
        wrapper: a program that runs the server, such as ``nohup``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(config, "utf-8")
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", module, "serve", "--host", host, "--port", "0"],
        cwd=folder,
        env=clean_environment() | dict(environ or {}),
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if "listening on" in line:
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, name="server log")
    reader.start()
    try:
        listening.wait(START_SECONDS)
        found = [match for line in lines if (match := re.search(r"listening on (http://[^\s\"]+)", line))]
        assert found, f"the server did not start: {lines}"
        yield Server(process, found[0].group(1), folder, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        if process.stderr is not None:
            process.stderr.close()


def engine_of(server: Server) -> psutil.Process:
    """Return the server's engine process as soon as there is one."""
    deadline = time.monotonic() + ENGINE_SECONDS
    while time.monotonic() < deadline:
        if children := server.children():
            return children[0]
        time.sleep(0.02)
    raise AssertionError("the server has no engine process")


def clean_environment() -> dict[str, str]:
    """Return an environment without this project's settings, in which the package is found."""
    return {
        # A download that a test starts by mistake reaches no host.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        **{name: value for name, value in os.environ.items() if not name.startswith("MFLUX_")},
        "PYTHONPATH": str(ROOT),
        **{name: os.environ[name] for name in [DEVICES_VARIABLE] if name in os.environ},
    }


def api_client(url: str, **options: Any) -> httpx.Client:
    """Return a client that fails on any JSON answer that the OpenAPI document does not describe."""
    return httpx.Client(base_url=url, timeout=60.0, event_hooks={"response": [_check_answer]}, **options)


@cache
def _document() -> dict[str, Any]:
    return describe(max_images=4)


def _check_answer(response: httpx.Response) -> None:
    if response.headers.get("content-type") != "application/json" or response.request.method == "HEAD":
        return
    response.read()
    schema = _schema_of(response)
    jsonschema.Draft202012Validator(schema | {"components": _document()["components"]}).validate(response.json())


def _schema_of(response: httpx.Response) -> dict[str, Any]:
    path, method, status = response.request.url.path, response.request.method.lower(), str(response.status_code)
    for template, operations in _document()["paths"].items():
        # A LoRA's name may hold slashes.
        pattern = re.sub(r"\{\w+\}", "[^/]+", template.replace("{name}", ".+"))
        if re.fullmatch(pattern, path) and method in operations:
            answers = operations[method]["responses"]
            assert status in answers, f"{method} {template}: status {status} is not documented"
            schema: dict[str, Any] = answers[status]["content"]["application/json"]["schema"]
            return schema
    assert response.status_code in (401, 403, 404, 405), f"{method} {path} is not documented"
    return {"$ref": "#/components/schemas/ErrorBody"}
