"""A1111's extras: what bounds those that need no model, and which job's image goes into which result."""

from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import trio
import trio.testing
from PIL import Image

from mflux_api.actors import messages as m
from mflux_api.actors.decoding import Decoding
from mflux_api.catalog import BUILT_IN, Catalog
from mflux_api.errors import ServerBusy, ShuttingDown, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras import MAX_PLAIN_CALLS, PLAIN_CALLS_OF_CALLER, Extras
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from mflux_api.images.child.client import Decoded
from mflux_api.images.png import encode_png
from mflux_api.jobs.request import GenerateRequest
from tests.support.local_decoding import LOCAL, do
from tests.support.sample_images import scene, to_base64, to_image

SOURCE = to_base64(scene((48, 32)))
PLAIN = ExtrasOptions(upscaler_1="Lanczos")


@attrs.define
class Idle:
    """A gateway to a service with nothing to do."""

    draining: bool = False
    catalog: Catalog = attrs.field(factory=lambda: Catalog(BUILT_IN))
    decoding: Decoding = LOCAL

    async def status(self) -> m.SchedulerStatus:
        return m.SchedulerStatus(active=0, queued=0, draining=self.draining, degraded=False)


async def test_calls_beyond_the_limit_are_refused_and_the_others_finish() -> None:
    gate = trio.Event()

    async def wait_and_do(message: m.Decode) -> Decoded:
        await gate.wait()
        return await do(message)

    owner = "flood"
    service = Extras(cast("Gateway", Idle(decoding=Decoding(wait_and_do))), lambda: owner)
    images: list[str] = []

    async def upscale() -> None:
        made, _ = await service.upscale(PLAIN, [SOURCE], "image")
        images.extend(made)

    async with trio.open_nursery() as nursery:
        for _ in range(PLAIN_CALLS_OF_CALLER):
            nursery.start_soon(upscale)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyConnections):
            await upscale()
        owner = "another caller"
        for _ in range(MAX_PLAIN_CALLS - PLAIN_CALLS_OF_CALLER):
            nursery.start_soon(upscale)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ServerBusy):
            await upscale()
        gate.set()
    assert [to_image(image).size for image in images] == [(96, 64)] * MAX_PLAIN_CALLS
    await upscale()


async def test_draining_service_takes_no_calls() -> None:
    with pytest.raises(ShuttingDown):
        await Extras(cast("Gateway", Idle(draining=True)), lambda: "").upscale(PLAIN, [SOURCE], "image")


@attrs.define
class Numbering(Idle):
    """A gateway whose jobs make images of one grey level each: 10, 20, 30 … in the order of their submission."""

    submitted: list[GenerateRequest] = attrs.field(factory=list)
    read: list[int] = attrs.field(factory=list)

    async def submit(self, request: GenerateRequest, *, synchronous: bool, **_: object) -> SimpleNamespace:
        assert synchronous
        self.submitted.append(request)
        return SimpleNamespace(job=SimpleNamespace(id=len(self.submitted)))

    async def awaited_end(self, job_id: int) -> SimpleNamespace:
        request = SimpleNamespace(seed=self.submitted[job_id - 1].seed)
        job = SimpleNamespace(id=job_id, failure=None, images=(job_id,), request=request)
        return SimpleNamespace(job=job, newest=None)

    def caller_done(self, job_id: int) -> None:
        self.read.append(job_id)

    async def image_bytes(self, image: int) -> bytes:
        assert image not in self.read
        return encode_png(bytes([10 * image]) * (3 * 96 * 64), 96, 64, parameters="")


@pytest.mark.parametrize(
    ("first", "second", "visibility", "levels"),
    [
        ("seedvr2", "None", 0.0, [10, 20, 30]),
        ("seedvr2", "seedvr2", 0.5, [15, 35, 55]),
        ("Nearest", "seedvr2", 1.0, [10, 20, 30]),
        ("seedvr2", "Nearest", 0.5, [105, 110, 115]),
    ],
)
async def test_each_result_is_made_of_its_own_jobs(
    first: str, second: str, visibility: float, levels: list[int]
) -> None:
    options = ExtrasOptions(upscaler_1=first, upscaler_2=second, extras_upscaler_2_visibility=visibility, seed=7)
    grey = to_base64(Image.new("RGB", (48, 32), (200, 200, 200)))
    images, done = await Extras(cast("Gateway", Numbering()), lambda: "").upscale(options, [grey] * 3, "imageList")
    assert [set(to_image(image).tobytes()) for image in images] == [{level} for level in levels]
    assert "Seed: 7" in done
