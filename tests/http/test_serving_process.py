"""What the serving process has in it: no library that reads what strangers send."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sample_images import scene, to_base64
from tests.support.server import ROOT


@pytest.mark.slow
def test_serving_process_never_imports_pillow_or_model_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.serving_process", str(tmp_path)],
        cwd=ROOT,
        input=to_base64(scene()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["statuses"] == [200] * 7 + [400]
    assert said["imported"] == []
