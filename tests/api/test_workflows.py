"""The four workflow examples of the API document, run as a reader would; only host and sizes differ."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.server import Server

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent / "workflows"


def adapted(name: str, server: Server) -> str:
    """Return an example for this server, with images that a CPU generates in no time."""
    text = (EXAMPLES / name).read_text("utf-8").replace("http://localhost:7861", server.url)
    text = re.sub(r'"(width|height)": \d+', r'"\1": 64', text)
    if '"width"' not in text:
        text = re.sub(r'("steps": \d+)', r'\1, "width": 64, "height": 64', text)
    return text


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_shell(name: str, server: Server, folder: Path) -> str:
    for tool in ("bash", "curl", "jq", "base64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return run(["bash", "-euo", "pipefail", "-c", adapted(name, server)], folder)


def run_python(name: str, server: Server, folder: Path) -> str:
    (folder / "example.py").write_text(adapted(name, server), "utf-8")
    return run([sys.executable, "example.py"], folder)


def assert_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.size == (64, 64)


def test_example_1_generate_and_download(server: Server, tmp_path: Path) -> None:
    assert "Image saved to sunset.png" in run_shell("example_1.sh", server, tmp_path)
    assert_image(tmp_path / "sunset.png")


def test_example_2_async_generation_with_progress(server: Server, tmp_path: Path) -> None:
    printed = run_python("example_2.py", server, tmp_path)
    assert "Job submitted: " in printed
    assert "Generation complete!" in printed
    for index in range(4):
        assert_image(tmp_path / f"output_{index}.png")


def test_example_3_pre_quantized_model(server: Server, tmp_path: Path) -> None:
    assert '"images":["' in run_shell("example_3.sh", server, tmp_path)


def test_example_4_batch_with_different_seeds(server: Server, tmp_path: Path) -> None:
    printed = run_python("example_4.py", server, tmp_path)
    assert printed.count("Generated: ") == 3
    for index in range(3):
        assert_image(tmp_path / f"batch_{index}.png")
