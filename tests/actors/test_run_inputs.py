"""Init images and LoRAs on their way from a request to the engine's run frame."""

import base64
import gc
from io import BytesIO
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from PIL import Image

from mflux_api.actors import messages as m
from mflux_api.actors.generator.run_commands import run_command
from mflux_api.catalog import BUILT_IN
from mflux_api.engine.interface import Received
from mflux_api.engine.protocol import Upscale
from mflux_api.errors import GenerationFailed, InvalidParameter, QueueFull
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.jobs.upscaling import resolve_upscaling
from mflux_api.service import open_service
from mflux_api.storage.input_files import InputFiles
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import ended, eventually, gateway, request, runs, scripted_service, settings
from tests.support.local_decoding import LOCAL
from tests.support.requests import resolved_request
from tests.support.safetensors_bytes import safetensors_bytes
from tests.support.scripted_engine import PREVIEW, Crash, Hold, Script


def encoded(size: tuple[int, int], colour: tuple[int, int, int] = (9, 8, 7)) -> str:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def edit(strength: float | None = 0.5, **changes: object) -> GenerateRequest:
    images = (encoded((80, 64)), encoded((64, 64), (1, 2, 3)))
    whole = attrs.evolve(request(), width=None, height=None, init_images=images, image_strength=strength)
    return attrs.evolve(whole, steps=4, **changes)  # type: ignore[arg-type]


async def test_edit_comes_to_the_engine_as_images_in_its_sizes(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        await ended(service, (await service.submit(edit(width=96))).id)
        await ended(service, (await service.submit(edit(1.0))).id)
        await ended(service, (await service.submit(edit(None))).id)
    (half, half_blobs), (whole, whole_blobs), (usual, _) = runs(script)
    first, second = bytes((9, 8, 7)) * 80 * 64, bytes((1, 2, 3)) * 64 * 64
    assert (half.width, half.height, half.references) == (96, 64, ((80, 64), (64, 64)))
    assert (half.start, half.image_strength, half.steps) == (True, 0.5, 4)
    assert half_blobs == (first, second, bytes((9, 8, 7)) * 96 * 64)
    assert (whole.width, whole.height, whole.start, whole.image_strength) == (80, 64, False, 1.0)
    assert whole_blobs == (first, second)
    assert usual.image_strength == 0.75


async def test_init_images_are_read_for_a_run_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are up to 64 MB, and the store serves everybody."""
    reads = list[str]()
    read = InputFiles.read

    def reading(self: InputFiles, digest: str) -> str:
        reads.append(digest)
        return read(self, digest)

    monkeypatch.setattr(InputFiles, "read", reading)
    hold = Hold()
    script = Script(at={"run": hold, "step 0/1": Crash()})
    options = settings(tmp_path)
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            job = await service.submit(edit(width=80))
            await hold.reached.wait()
            assert (await service.job(job.id)).status is Status.GENERATING
            hold.release.set()
            assert (await ended(service, job.id)).status is Status.COMPLETED
    first, second = bytes((9, 8, 7)) * 80 * 64, bytes((1, 2, 3)) * 64 * 64
    assert [blobs[:2] for _, blobs in runs(script)] == [(first, second)] * 2, "it ran twice, with its images"
    assert len(reads) == 4, "two images for each run"


async def test_waiting_jobs_hold_no_init_images_in_memory(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    options = settings(tmp_path)
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await service.submit(request())
            await hold.reached.wait()
            jobs = [(await service.submit(edit())).id for _ in range(3)]
            await trio.testing.wait_all_tasks_blocked()
            assert _texts_in_memory() == 0
            hold.release.set()
            assert [(await ended(service, job)).status for job in jobs] == [Status.COMPLETED] * 3


def _texts_in_memory() -> int:
    gc.collect()
    requests = [each for each in gc.get_objects() if isinstance(each, ResolvedRequest)]
    return sum(any(each.init_images) for each in requests)


async def test_queue_of_init_images_is_full_at_its_quota_and_says_which_setting_it_is(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_inputs_gb=1e-7) as service:
        first = await service.submit(edit())
        await hold.reached.wait()
        with pytest.raises(QueueFull, match=r"scheduler\.max_inputs_gb"):
            await service.submit(edit())
        without_images = await service.submit(request())
        hold.release.set()
        await ended(service, first.id)
        await ended(service, without_images.id)
        await ended(service, (await service.submit(edit())).id)


async def test_blanks_around_an_init_image_take_no_part_of_the_quota(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_inputs_gb=1e-5) as service:
        images = edit().init_images
        await service.submit(edit(init_images=(" " * 100_000 + images[0] + "\n" * 100_000, images[1])))
        await hold.reached.wait()
        second = await service.submit(edit())
        hold.release.set()
        assert (await ended(service, second.id)).status is Status.COMPLETED


async def test_image_to_be_upscaled_comes_to_the_engine_as_it_was_given() -> None:
    asked = GenerateRequest(init_images=(encoded((50, 33)),), seed=4, num_images=2, softness=0.5, low_ram=True)
    upscaler = next(model for model in BUILT_IN if model.upscales)
    resolved = resolve_upscaling(asked, upscaler, (50, 33))
    events, _ = trio.open_memory_channel[Received](1)
    lease = m.Lease(id=1, engine="0", incarnation=1, model="seedvr2", load_seconds=0.0)
    inputs = await LOCAL.run_inputs(resolved)
    command, blobs = run_command(
        m.Run(lease=lease, request=resolved, run_id=3, events=events, inputs=inputs), previews=True
    )
    assert command == Upscale(
        run_id=3, model="seedvr2", seeds=(4, 5), width=50, height=33, resolution=66, softness=0.5, low_ram=True
    )
    assert blobs == (bytes((9, 8, 7)) * 50 * 33,)


async def test_removed_image_fails_its_job_and_says_so() -> None:
    with pytest.raises(GenerationFailed, match="was removed"):
        await LOCAL.run_inputs(resolved_request(init_images=("",)))


async def test_loras_come_as_paths_with_all_their_scales_and_stay_names_in_the_job(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    for name in ("ink", "oil"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(safetensors_bytes())
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        asked = attrs.evolve(request(prompt="a tree <lora:oil:0.3>"), lora_files=("ink",))
        job = await ended(service, (await service.submit(asked)).id)
        with pytest.raises(InvalidParameter):
            await service.submit(attrs.evolve(request(), lora_files=("other",)))
    ((run, _),) = runs(script)
    assert run.lora_paths == tuple(str(tmp_path / "loras" / f"{name}.safetensors") for name in ("ink", "oil"))
    assert (run.lora_scales, run.prompt) == ((1.0, 0.3), "a tree")
    assert job.request.lora_files == ("ink.safetensors", "oil.safetensors")


async def test_lora_that_went_away_meanwhile_fails_its_job_alone(tmp_path: Path) -> None:
    path = tmp_path / "loras" / "ink.safetensors"
    path.parent.mkdir()
    path.write_bytes(safetensors_bytes())
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold})) as service:
        running = await service.submit(request())
        waiting = await service.submit(attrs.evolve(request(), lora_files=("ink",)))
        await hold.reached.wait()
        path.unlink()
        hold.release.set()
        failed = await ended(service, waiting.id)
        assert (await ended(service, running.id)).status is Status.COMPLETED
    assert failed.failure is not None
    assert failed.failure.code == "INVALID_PARAMETER"


async def test_edit_is_tried_again_with_the_same_images(tmp_path: Path) -> None:
    script = Script(at={"step 0/2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(edit())).id)
    (first, first_blobs), (again, again_blobs) = runs(script)
    assert job.status is Status.COMPLETED
    assert attrs.evolve(first, run_id=again.run_id) == again
    assert first_blobs == again_blobs


async def test_finished_job_holds_no_images(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(edit())).id)
        assert job.request.init_images == (await service.job(job.id)).request.init_images == ()
        assert (job.request.image_strength, job.request.steps_run) == (0.5, 2)


async def test_bad_image_is_refused_before_there_is_a_job(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        with pytest.raises(InvalidParameter):
            await service.submit(edit(init_images=("aGk=",)))
        assert (await gateway(service).jobs())[0] == ()


async def test_previews_of_the_image_that_is_being_generated(tmp_path: Path) -> None:
    begin = Hold()
    async with scripted_service(tmp_path, Script(at={"run": begin}, per_pass=2)) as service:
        job = await service.submit(request(num_images=3))
        async with service.events(job.id, previews=True) as events:
            begin.release.set()
            seen = [event async for event in events if isinstance(event, Progress)]
    shown = [(event.image, event.step) for event in seen if event.preview is not None]
    assert shown == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert {event.preview for event in seen} == {None, base64.b64encode(PREVIEW).decode()}


async def test_previews_begin_when_someone_follows_them(tmp_path: Path) -> None:
    second = Hold()
    script = Script(at={"step 0/2": second})
    async with scripted_service(tmp_path, script) as service:
        job = await service.submit(request())
        async with service.events(job.id):
            await second.reached.wait()
        assert script.current.previewed == set()
        async with service.events(job.id, previews=True) as events:
            await eventually(lambda: bool(script.current.previewed))
            second.release.set()
            steps = [event.step async for event in events if isinstance(event, Progress) and event.preview is not None]
    assert steps == [2]
