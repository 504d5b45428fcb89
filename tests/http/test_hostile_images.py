"""A service whose image children are all taken: what needs none goes on, and an order ends with its client."""

from pathlib import Path

import attrs
import httpx
import psutil
import pytest
import trio

from mflux_api import tree
from mflux_api.actors.decoder import CHILDREN, Decoder
from mflux_api.images.child import client
from tests.support.decoder_child import SMALL
from tests.support.harness import eventually
from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow

FIELDS = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
ENDLESS = attrs.evolve(SMALL, cpu_seconds=600, wall_seconds=600)


def working() -> int:
    """How many image children are at work."""
    children = [each for each in psutil.Process().children() if "decoder_child" in " ".join(each.cmdline())]
    return sum(each.cpu_times().user > 0.4 for each in children)


async def send(api: Api, text: str) -> httpx.Response:
    return await api.http.post("/sdapi/v1/img2img", json=FIELDS | {"init_images": [text]})


async def test_images_that_never_end_hold_up_nothing_else_and_end_with_their_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "Decoder", lambda mailbox, **_: Decoder(mailbox, ENDLESS))
    monkeypatch.setattr(client, "_LEAVE_SECONDS", 0.0)

    async with scripted_api(tmp_path) as api:
        async with trio.open_nursery() as attackers:
            for _ in range(CHILDREN + 2):
                attackers.start_soon(send, api, "spin")
            await eventually(lambda: working() == CHILDREN)
            assert (await api.http.get("/api/v1/health")).json()["status"] == "healthy"
            assert (await api.http.post("/sdapi/v1/txt2img", json=FIELDS)).status_code == 200
            attackers.cancel_scope.cancel()
        answer = await send(api, "raise")
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
