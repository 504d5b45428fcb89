"""A running server, in the environment of the repository, and what the tests send and look at."""

import base64
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import attrs
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("MFLUX_PYTHON", ROOT / ".venv" / "bin" / "python"))
"""That of the environment in which the server is installed."""

KEY = "a key of the clients that are tried"
OTHER_KEY = "a key of another person's client"
START_SECONDS = 60.0
SIDE = 64
MOST_LOOKS = 2000


@attrs.frozen
class Running:
    """A server and what a client is told about it."""

    url: str
    key: str | None
    """``None``: it asks for none."""

    @property
    def openai(self) -> str:
        """What OpenAI's clients take as their base URL."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    @property
    def any_key(self) -> str:
        """The key, or what a client that insists on one sends to a server without."""
        return self.key or "not needed"

    @property
    def basic(self) -> tuple[str, str] | None:
        """Name and password of Basic authentication."""
        return None if self.key is None else ("user", self.key)

    @property
    def headers(self) -> dict[str, str]:
        """Those of a client of our own."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def jobs(self) -> list[dict[str, object]]:
        """Return all jobs, the newest first."""
        return list(requests.get(f"{self.url}/api/v1/jobs", headers=self.headers, timeout=30).json()["jobs"])

    def eventually_newest(self, status: str) -> bool:
        """Look at the newest job until it has a status."""
        return any(self.jobs()[0]["status"] == status for _ in range(MOST_LOOKS))


@contextmanager
def running(folder: Path, *, keys: bool) -> Iterator[Running]:
    """Run ``mflux-api serve`` on a free port."""
    security = f'[security]\napi_keys = ["{KEY}", "{OTHER_KEY}"]\n' if keys else ""
    (folder / "config.toml").write_text(f'[models]\ndefault = "demo"\n{security}', "utf-8")
    (folder / "config.toml").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MFLUX_", "VIRTUAL_ENV"))}
    assert PYTHON.is_file(), "the server is not installed: run `uv sync`, or name its Python in MFLUX_PYTHON"
    process = subprocess.Popen(
        [PYTHON, "-m", "mflux_api", "serve", "--host", "127.0.0.1", "--port", "0"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9"},
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
        found = [match[1] for line in lines if (match := re.search(r"listening on (http://\S+)", line))]
        assert found, f"the server did not start: {lines}"
        yield Running(found[0], KEY if keys else None)
    finally:
        process.terminate()
        process.wait()
        reader.join()


def image(side: int = SIDE, colour: str = "teal") -> bytes:
    """Return a PNG file with a square of one colour on grey."""
    drawn = Image.new("RGB", (side, side), "grey")
    drawn.paste(colour, (side // 4, side // 4, side // 2, side // 2))
    return saved(drawn)


def mask(side: int = SIDE) -> bytes:
    """Return a PNG file of the same size, whose left half is transparent."""
    drawn = Image.new("RGBA", (side, side), "black")
    drawn.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    return saved(drawn)


def saved(drawn: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


def opened(data: bytes | str) -> Image.Image:
    """Return an image from its file or its base64, whole."""
    found = Image.open(BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    found.load()
    return found


def right_half(drawn: Image.Image) -> bytes:
    """Return the pixels that :func:`mask` keeps, without those that its soft edge reaches."""
    width, height = drawn.size
    return drawn.convert("RGB").crop((width * 3 // 4, 0, width, height)).tobytes()
