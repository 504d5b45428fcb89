"""SillyTavern's own routes, which its page calls, in a process of their own."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clients.packages import installed
from tests.clients.running import SIDE, Running, opened
from tests.clients.test_replayed_calls import SILLY_TAVERN

HERE = Path(__file__).parent / "sillytavern"
SECONDS = 60


@pytest.fixture(scope="session")
def tavern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its routes."""
    command = ["node", "server.mjs"]
    process = subprocess.Popen(
        command, cwd=installed(HERE, tmp_path_factory), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        # It prints each call, and would stop where the pipe is full.
        threading.Thread(target=process.stdout.read, name="SillyTavern's log").start()
        yield f"http://127.0.0.1:{line.split()[-1]}/api/sd"
    finally:
        process.kill()
        process.wait()


class Page:
    """What its page asks, with the URL and the credentials of its settings."""

    def __init__(self, tavern: str, server: Running) -> None:
        self._tavern = tavern
        self._settings = {"url": server.url, "auth": "" if server.key is None else f"user:{server.key}"}

    def ask(self, path: str, seconds: float = SECONDS, **body: Any) -> requests.Response:
        return requests.post(f"{self._tavern}/{path}", json=self._settings | body, timeout=seconds)

    def json(self, path: str, **body: Any) -> Any:
        answer = self.ask(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def page(tavern: str, server: Running) -> Page:
    return Page(tavern, server)


def test_it_connects_and_fills_its_lists(page: Page) -> None:
    assert page.ask("ping").status_code == 200
    assert page.json("upscalers")[0] == "None"
    assert page.json("vaes") == []
    assert page.json("samplers")[0].startswith("Euler")
    assert page.json("schedulers")
    assert {"value": "demo", "text": "demo"} in page.json("models")


def test_it_sets_the_model(page: Page) -> None:
    for name in ("demo-base", "demo"):
        assert page.ask("set-model", model=name).status_code == 200
        assert page.ask("get-model").text == name


def test_it_generates(page: Page) -> None:
    made = page.json("generate", **SILLY_TAVERN)
    assert opened(made["images"][0]).size == (SIDE, SIDE)


def test_stop_ends_its_image_and_the_next_one_is_made(page: Page, server: Running) -> None:
    for _ in range(2):
        with pytest.raises(requests.ReadTimeout):
            page.ask("generate", 0.7, **SILLY_TAVERN | {"steps": 200, "width": 512, "height": 512})
        assert server.eventually_newest("cancelled")
        assert len(page.json("generate", **SILLY_TAVERN)["images"]) == 1


def test_its_other_sources_take_this_server_too(page: Page, server: Running) -> None:
    assert page.ask("sdcpp/ping").status_code == 200
    assert page.ask("drawthings/ping").status_code == 200
    asked = {
        name: SILLY_TAVERN[name] for name in ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale")
    }
    assert opened(page.json("drawthings/generate", **asked, seed=-1)["images"][0]).size == (SIDE, SIDE)
    if server.key is not None:
        return
    # It sends no credentials to these.
    assert page.ask("drawthings/get-model").text == "demo"
    assert "demo" in [model["id"] for model in page.json("sdcpp/models")["data"]]
    made = page.json("sdcpp/generate", **asked, model="demo", batch_size=2, sampler_name="euler", scheduler="simple")
    assert len(made["images"]) == 2


def test_wrong_password_is_told(page: Page, server: Running) -> None:
    assert page.ask("ping", auth="user:wrong, and long enough").status_code == (200 if server.key is None else 500)
