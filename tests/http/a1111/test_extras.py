"""A1111's extras that need no model: what bounds them in place of the queue."""

from typing import cast

import attrs
import pytest
import trio
import trio.testing

from mflux_api.actors import messages as m
from mflux_api.catalog import BUILT_IN, Catalog
from mflux_api.errors import QueueFull, ShuttingDown
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras import MAX_PLAIN_CALLS, THREADS, Extras
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from tests.support.sample_images import scene, to_base64, to_image

SOURCE = to_base64(scene((48, 32)))
PLAIN = ExtrasOptions(upscaler_1="Lanczos")


@attrs.define
class Idle:
    """A gateway to a service with nothing to do."""

    draining: bool = False
    catalog: Catalog = attrs.field(factory=lambda: Catalog(BUILT_IN))

    async def load(self) -> m.Load:
        return m.Load(active=0, queued=0, draining=self.draining, degraded=False)


async def test_calls_beyond_the_room_for_them_are_refused_and_the_others_finish() -> None:
    service = Extras(cast("Gateway", Idle()))
    images: list[str] = []

    async def upscale() -> None:
        made, _ = await service.upscale(PLAIN, [SOURCE], "image")
        images.extend(made)

    busy = [object() for _ in range(THREADS)]
    async with trio.open_nursery() as nursery:
        for thread in busy:
            service._threads.acquire_on_behalf_of_nowait(thread)
        for _ in range(MAX_PLAIN_CALLS):
            nursery.start_soon(upscale)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await upscale()
        for thread in busy:
            service._threads.release_on_behalf_of(thread)
    assert [to_image(image).size for image in images] == [(96, 64)] * MAX_PLAIN_CALLS
    await upscale()


async def test_draining_service_takes_no_calls() -> None:
    with pytest.raises(ShuttingDown):
        await Extras(cast("Gateway", Idle(draining=True))).upscale(PLAIN, [SOURCE], "image")
