"""The page in a real Chromium, over a real server with the embedded model: one story a test, told by ``page.mjs``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients.packages import installed
from tests.support.hub_server import wait_until
from tests.support.server import DEMO_CONFIG, clean_environment

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
KEY = "a key that is long enough for it"


class Site:
    """A server on a port of its own, that can be stopped and started again."""

    def __init__(self, folder: Path, config: str) -> None:
        self._folder = folder
        (folder / "config.toml").write_text(config, "utf-8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mflux_api", "serve", "--host", "127.0.0.1", "--port", str(self.port)],
            cwd=self._folder,
            env=clean_environment(),
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def stop(self) -> None:
        """Kill it, as a crash would."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the embedded model."""
    site = Site(tmp_path_factory.mktemp("demo"), DEMO_CONFIG)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the stories and the packages that they need."""
    assert shutil.which("npm") is not None, "Node is needed, with npm"
    return installed(FOLDER, tmp_path_factory)


def tell(story: str, site: Site, stories: Path, folder: Path) -> None:
    """Have a story told: it says ``restart`` when the server has to die, and ends with 0 when all of it held."""
    node = shutil.which("node")
    assert node is not None, "Node is needed"
    assert Path(CHROMIUM).exists(), "Chromium is needed: apt-get install chromium, or CHROMIUM=/path"
    command = [node, str(stories / "page.mjs"), story, site.url, CHROMIUM, str(folder), KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as told:
        assert told.stdout is not None
        assert told.stdin is not None
        lines = []
        for line in told.stdout:
            lines.append(line)
            if line == "restart\n":
                site.stop()
                told.stdin.write("down\n")
                told.stdin.flush()
            if line == "start\n":
                site.start()
    print("".join(lines))  # noqa: T201 - figures, with -s
    assert told.returncode == 0, "".join(lines)


STORIES = (
    "mended",
    "generate",
    "thousand",
    "cancel",
    "mask",
    "touch",
    "models",
    "accessible",
    "sheet",
    "shift",
    "first",
    "docs",
    "suggestion",
    "engine",
)


@pytest.mark.parametrize("story", STORIES)
def test_story_of_the_page(story: str, demo: Site, stories: Path, tmp_path: Path) -> None:
    tell(story, demo, stories, tmp_path)


def test_zip_that_the_page_makes_opens(demo: Site, stories: Path, tmp_path: Path) -> None:
    tell("zip", demo, stories, tmp_path)
    with zipfile.ZipFile(tmp_path / "images.zip") as made:
        assert made.testzip() is None
        entries = made.infolist()
        data = [made.read(entry) for entry in entries]
    assert [entry.filename.rpartition(" ")[0] for entry in entries] == ["a house Häuser 雪", "a lake"]
    assert all(entry.date_time >= (2026, 1, 1, 0, 0, 0) for entry in entries)
    assert all(image.startswith(b"\x89PNG") for image in data)


def test_page_goes_on_after_the_server_died_and_came_back(demo: Site, stories: Path, tmp_path: Path) -> None:
    tell("restart", demo, stories, tmp_path)


def test_page_asks_for_the_key_and_keeps_a_session(stories: Path, tmp_path: Path) -> None:
    site = Site(tmp_path, f'{DEMO_CONFIG}[security]\napi_keys = ["{KEY}"]\n')
    try:
        tell("key", site, stories, tmp_path)
    finally:
        site.stop()
