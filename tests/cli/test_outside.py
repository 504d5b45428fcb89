"""What a start and a job do beyond this process: our own children and loopback, and nothing else."""

import os
import stat
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from mflux_api.ipc.child_process import ChildProcess
from tests.support.audit import audit, events
from tests.support.server import DEMO_CONFIG, api_client, serving

pytestmark = pytest.mark.slow

TOOLS = ("gcc", "cc", "c++", "clang", "ld", "ldconfig", "objdump", "uname", "lsb_release", "file", "nvidia-smi", "git")
"""Programs that Python or a library may start to learn something of the machine."""

Noted = list[tuple[int, str, list[Any]]]


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Noted:
    """All that a server and its children did, from its start over a job and a download to its end."""
    folder = tmp_path_factory.mktemp("outside")
    environ = audit(folder / "audit")
    tools = folder / "tools"
    tools.mkdir()
    for name in TOOLS:
        # Each notes that it was started, also by what Python does not see.
        (tools / name).write_text(f'#!/bin/sh\necho "[0, \\"tool\\", [\\"{name}\\"]]" >> "$TEST_AUDIT_LOG"\n', "utf-8")
        (tools / name).chmod(stat.S_IRWXU)
    environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    with serving(folder, DEMO_CONFIG, environ) as server:
        with api_client(server.url) as client:
            body = {"prompt": "a red house", "width": 64, "height": 64, "steps": 1}
            client.post("/sdapi/v1/txt2img", json=body).raise_for_status()
            client.get("/api/v1/system").raise_for_status()
            # The hub is a port of loopback where no server listens.
            client.post("/api/v1/models/flux2-klein-4b/download").raise_for_status()
            while client.get("/api/v1/models/flux2-klein-4b/status").json()["status"] == "downloading":
                pass
        assert server.stop() == 0
    return events(environ)


def test_start_and_a_job_and_a_download_start_no_program_but_our_children(noted: Noted) -> None:
    starts = [(event, arguments) for _, event, arguments in noted if not event.startswith("socket.")]
    modules = {arguments[1][3] for event, arguments in starts if _is_child(event, arguments)}
    assert {"mflux_api.engine.worker", "mflux_api.hub.child"} <= modules
    assert [each for each in starts if not _is_child(*each)] == []


def _is_child(event: str, arguments: list[Any]) -> bool:
    if event != "subprocess.Popen":
        return False
    program, command = arguments
    module = str(command[3]) if command[1:3] == ["-P", "-m"] else ""
    return bool(program == sys.executable) and module.startswith("mflux_api.")


def test_start_and_a_job_and_a_download_connect_to_loopback_only(noted: Noted) -> None:
    looks = [(event, arguments) for _, event, arguments in noted if event.startswith("socket.")]
    assert looks, "the download at least looks for its hub"
    assert [each for each in looks if not _stays_here(*each)] == []


def _stays_here(event: str, arguments: list[Any]) -> bool:
    """Whether an address is one of loopback, a name in the file system, or no name at all."""
    address = arguments[1] if event in {"socket.connect", "socket.sendto"} else arguments[0]
    host = address[0] if isinstance(address, list) else address
    if host is None or (event in {"socket.connect", "socket.sendto"} and isinstance(address, str)):
        return True
    try:
        return ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return str(host) == "localhost"


async def test_children_are_told_to_report_nothing() -> None:
    names = ("DO_NOT_TRACK", "DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    process = await ChildProcess.launch([sys.executable, "-c", code])
    child = ChildProcess(process)
    assert process.stdout is not None
    said = b"".join([bytes(chunk) async for chunk in process.stdout])
    await child.aclose(force=True)
    assert said.decode().strip() == "['1', '1', '1']"


def test_search_for_a_library_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mflux_api.system import native_libraries

    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: started.append(command))
    assert (native_libraries.find_library("pthread") is not None) == (sys.platform == "linux")
    assert native_libraries.find_library("no-such-library-anywhere") is None
    assert started == []
