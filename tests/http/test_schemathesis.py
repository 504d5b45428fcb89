"""The live port against its own ``/openapi.json``: schemathesis makes requests from it and judges the answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from mflux_api.http.openapi import OPERATIONS
from tests.support.scripted_server import MODULE
from tests.support.server import DEMO_CONFIG, ROOT, serving

CONFIG = ROOT / "tests" / "http" / "schemathesis.toml"
# There is no key here, and `coverage` alone asks some 1,200 times.
ENDLESS = "/api/v1/events"
OPTIONS = (
    *("--phases", "coverage", "--exclude-checks", "ignored_auth,object_level_authorization", "--warnings", "off"),
    *("--exclude-path", ENDLESS),
)


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_has(tmp_path: Path) -> None:
    with serving(tmp_path, DEMO_CONFIG, module=MODULE) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
                *(f"{server.url}/openapi.json", "--seed", "1", "--max-examples", "2", "--no-shrink", *OPTIONS),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        # All but the document itself, which it reads first, and the stream that has no end.
        assert f"Tested: {len(OPERATIONS) - 2}\n" in done.stdout
        assert [line for line in server.lines if "Traceback" in line or " ERROR " in line] == []
        assert server.stop() == 0
