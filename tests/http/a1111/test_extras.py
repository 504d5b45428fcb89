"""A1111's extras: what bounds those that need no model, and which job's image goes into which result."""

from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import msgspec
import pytest
import trio
import trio.testing
from PIL import Image

from mflux_api.access.keys import Caller, Key
from mflux_api.access.visibility import ALL_JOBS
from mflux_api.actors import messages as m
from mflux_api.actors.decoding import Decoding
from mflux_api.catalog import BUILT_IN, Catalog
from mflux_api.errors import QueueFull, ServerBusy, ShuttingDown, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.extras_upscaling import MAX_OF_CALLER, MAX_PLAIN_CALLS, Extras, Pieces
from mflux_api.http.a1111.sdapi_schemas import ExtrasOptions
from mflux_api.images.child.client import Decoded
from mflux_api.images.png import encode_png
from mflux_api.jobs.request import GenerateRequest
from tests.support.local_decoding import LOCAL, do
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.scripted_api import scripted_api

CALLER = Caller(owner="", sees=ALL_JOBS)
SOURCE = to_base64(scene((48, 32)))
PLAIN = ExtrasOptions(upscaler_1="Lanczos")


def take_room(count: int, *, refuse: bool) -> None:
    """Where there is room for all."""


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

    owner = ContextVar("owner", default="a")
    service = Extras(
        cast("Gateway", Idle(decoding=Decoding(wait_and_do))),
        lambda: Caller(owner=owner.get(), sees=ALL_JOBS),
        take_room,
    )
    images: list[Pieces] = []

    async def upscale(who: str = "a") -> None:
        owner.set(who)
        images.extend((await service.upscale(PLAIN, [SOURCE], "image")).images)

    async with trio.open_nursery() as nursery:
        for number in range(MAX_PLAIN_CALLS):
            nursery.start_soon(upscale, "ab"[number % 2])
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await upscale()
        gate.set()
    assert [to_image(b"".join(image).decode()).size for image in images] == [(96, 64)] * MAX_PLAIN_CALLS
    await upscale()


@pytest.mark.parametrize(
    ("chosen", "runs"),
    [
        ({"upscaler_1": "Lanczos"}, False),
        ({"upscaler_1": "seedvr2"}, True),
        ({"upscaler_1": "Lanczos", "upscaler_2": "seedvr2"}, False),
        ({"upscaler_1": "Lanczos", "upscaler_2": "SeedVR2", "extras_upscaler_2_visibility": 0.5}, True),
        ({"upscaler_1": "Lanczos", "upscaler_2": "none", "extras_upscaler_2_visibility": 0.5}, False),
    ],
)
def test_only_calls_of_a_model_have_jobs_to_interrupt(chosen: dict[str, Any], runs: bool) -> None:
    service = Extras(cast("Gateway", Idle()), lambda: CALLER, take_room)
    assert service.runs_jobs(ExtrasOptions(**chosen)) is runs


async def test_jobs_of_a_call_are_named_as_they_are_accepted() -> None:
    named = list[Any]()
    options = ExtrasOptions(upscaler_1="seedvr2")
    service = Extras(cast("Gateway", Numbering()), lambda: CALLER, take_room)
    await service.upscale(options, [SOURCE, SOURCE], "image", on_submitted=named.append)
    assert named == [1, 2]


async def test_one_caller_does_not_keep_the_others_from_resizing() -> None:
    async def never(_: m.Decode) -> Decoded:
        await trio.sleep_forever()

    who = ["greedy"]
    service = Extras(
        cast("Gateway", Idle(decoding=Decoding(never))), lambda: Caller(owner=who[0], sees=ALL_JOBS), take_room
    )
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_OF_CALLER):
            nursery.start_soon(service.upscale, PLAIN, [SOURCE], "image")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyConnections, match="6 calls that resize images"):
            await service.upscale(PLAIN, [SOURCE], "image")
        who[0] = "another"
        with trio.move_on_after(0.01) as works:
            await service.upscale(PLAIN, [SOURCE], "image")
        assert works.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_draining_service_takes_no_calls() -> None:
    with pytest.raises(ShuttingDown):
        await Extras(cast("Gateway", Idle(draining=True)), lambda: CALLER, take_room).upscale(PLAIN, [SOURCE], "image")


@attrs.define
class Numbering(Idle):
    """A gateway whose jobs make images of one grey level each: 10, 20, 30 … in the order of their submission."""

    submitted: list[GenerateRequest] = attrs.field(factory=list)
    read: list[int] = attrs.field(factory=list)
    others: list[dict[str, object]] = attrs.field(factory=list)

    async def submit(self, request: GenerateRequest, *, synchronous: bool, **others: object) -> SimpleNamespace:
        assert synchronous
        self.submitted.append(request)
        self.others.append(others)
        return SimpleNamespace(job=SimpleNamespace(id=len(self.submitted)))

    async def awaited_end(self, job_id: int) -> SimpleNamespace:
        request = SimpleNamespace(seed=self.submitted[job_id - 1].seed)
        job = SimpleNamespace(id=job_id, failure=None, images=(job_id,), request=request, warnings=())
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
    upscaled = await Extras(cast("Gateway", Numbering()), lambda: CALLER, take_room).upscale(
        options, [grey] * 3, "imageList"
    )
    images, done = upscaled.images, upscaled.info
    assert [set(to_image(b"".join(image).decode()).tobytes()) for image in images] == [{level} for level in levels]
    assert "Seed: 7" in done


async def test_jobs_of_a_call_are_its_callers_and_keep_its_warnings() -> None:
    key = Key(name="ana", digest=b"", max_jobs=3)
    gateway = Numbering()
    caller = Caller(owner=key.owner, sees=ALL_JOBS, key=key)
    service = Extras(cast("Gateway", gateway), lambda: caller, take_room)
    warnings = ("a field is not known",)
    done = await service.upscale(ExtrasOptions(upscaler_1="seedvr2"), [SOURCE], "image", warnings)
    assert done.warnings == warnings
    assert (await service.upscale(PLAIN, [SOURCE], "image", warnings)).warnings == warnings
    soft = attrs.evolve(PLAIN, softness=0.5)
    assert "'softness' has no effect" in (await service.upscale(soft, [SOURCE], "image", warnings)).warnings[0]
    assert gateway.others == [{"caller": caller, "warnings": warnings, "names": {}}]


@pytest.mark.slow
async def test_images_of_an_answer_hold_up_no_other_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of JSON holds the interpreter: 0.4 s for a batch of 128 MB, in a thread or not."""
    encode, longest = msgspec.json.encode, 0

    def measured(value: object) -> bytes:
        nonlocal longest
        data = encode(value)
        longest = max(longest, len(data))
        return data

    noise = to_base64(Image.effect_noise((256, 256), 80.0).convert("RGB"))
    files = [{"data": noise, "name": "a"}, {"data": SOURCE, "name": "b"}]
    async with scripted_api(tmp_path) as api:
        monkeypatch.setattr(msgspec.json, "encode", measured)
        body = {"imageList": files, "upscaler_1": "None", "upscaling_resize": 1}
        batch = (await api.http.post("/sdapi/v1/extra-batch-images", json=body)).json()
        body = {"image": noise, "upscaler_1": "None", "upscaling_resize": 1}
        single = (await api.http.post("/sdapi/v1/extra-single-image", json=body)).json()
    assert [to_image(image).size for image in batch["images"]] == [(256, 256), (48, 32)]
    assert to_image(single["image"]).size == (256, 256)
    assert 0 < longest < 4096 < len(single["image"])


async def test_results_take_room_as_they_are_made_and_are_refused_where_there_is_none() -> None:
    """Eight calls of 89 MP each held 2.8 GB beside the limit."""
    taken = list[tuple[int, bool]]()

    def room_for_two(count: int, *, refuse: bool) -> None:
        if refuse and len(taken) == 2:
            raise ServerBusy("no room")
        taken.append((count, refuse))

    service = Extras(cast("Gateway", Idle()), lambda: CALLER, room_for_two)
    images = (await service.upscale(PLAIN, [SOURCE], "image")).images
    assert taken == [(len(b"".join(images[0])), True)]
    with pytest.raises(ServerBusy):
        await service.upscale(PLAIN, [SOURCE] * 9, "imageList")
    assert len(taken) == 2
    made = Extras(cast("Gateway", Numbering()), lambda: CALLER, room_for_two)
    await made.upscale(ExtrasOptions(upscaler_1="seedvr2"), [SOURCE], "image")
    assert taken[2][1] is False, "what a job has made is kept"
