"""What processes do to the outside: the programs that they start and the addresses that they look for."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.server import ROOT

LOG = "TEST_AUDIT_LOG"

_HOOK = """
import json, os, sys
LOG = os.environ.get("TEST_AUDIT_LOG")
STARTS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty", "os.spawn"}
LOOKS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"}
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
def note(event, arguments):
    if event in STARTS or event in LOOKS:
        # What follows are environments, which may hold more than a test should print.
        line = json.dumps([os.getpid(), event, plain(arguments[:2])]) + "\\n"
        file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, line.encode())
        os.close(file)
if LOG:
    sys.addaudithook(note)
"""


def audit(folder: Path) -> dict[str, str]:
    """Return the environment in which Python, and every Python that it starts, notes such events in a log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK, "utf-8")
    return {LOG: str(folder / "events.jsonl"), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def events(environ: Mapping[str, str]) -> list[tuple[int, str, list[Any]]]:
    """Return what was noted: the process, the event and its first two arguments."""
    return [tuple(json.loads(line)) for line in Path(environ[LOG]).read_text("utf-8").splitlines()]
