"""A mask's way from a request to the engine's run, through restarts, and out again."""

from pathlib import Path

import attrs
import pytest
from PIL import Image

from mflux_api.engine.protocol import Inpainting
from mflux_api.errors import InvalidParameter
from mflux_api.jobs.job import Status
from mflux_api.jobs.request import Extend, GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import ended, request, runs, scripted_service, settings
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_engine import Crash, Hold, Script

SOURCE = scene((100, 66))
MASK = Image.new("L", SOURCE.size)
MASK.paste(255, (50, 0, 100, 66))


def masked(**changes: object) -> GenerateRequest:
    asked = attrs.evolve(request(), width=None, height=None, init_images=(to_base64(SOURCE),), mask=to_base64(MASK))
    return attrs.evolve(asked, **changes)  # type: ignore[arg-type]


async def test_result_has_the_images_own_size_and_the_run_the_nearest_one(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(masked(), synchronous=True)).id)
    ((run, blobs),) = runs(script)
    assert (run.width, run.height, run.start, run.image_strength) == (96, 64, True, 0.75)
    assert run.inpainting == Inpainting(result=(100, 66), box=(0, 0, 100, 66))
    reference, start, mask, overlay, blurred = blobs
    assert reference == start
    assert len(mask) == 96 * 64
    assert overlay == SOURCE.tobytes()
    assert len(blurred) == 100 * 66
    assert [(image.width, image.height) for image in job.images] == [(100, 66)]
    with Image.open(job.images[0].path) as image:
        assert image.size == (100, 66)
        assert "Size: 96x64" in image.text["parameters"]  # type: ignore[attr-defined]
        assert "Denoising strength: 0.75, Mask blur: 4," in image.text["parameters"]  # type: ignore[attr-defined]


async def test_crop_is_generated_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    script = Script()
    asked = masked(width=128, height=128, inpaint_full_res=True, inpaint_full_res_padding=2, inpainting_fill=3)
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(asked)).id)
    ((run, _),) = runs(script)
    assert (run.width, run.height) == (128, 128)
    assert run.inpainting == Inpainting(result=(100, 66), box=(34, 0, 66, 66), fill="nothing")
    assert (job.images[0].width, job.images[0].height) == (100, 66)


async def test_extended_image_starts_from_noise_and_keeps_what_it_had(tmp_path: Path) -> None:
    script = Script()
    asked = masked(mask=None, extend=Extend(left=28, bottom=30), mask_blur=0.0)
    async with scripted_service(tmp_path, script) as service:
        await ended(service, (await service.submit(asked)).id)
    ((run, blobs),) = runs(script)
    assert (run.width, run.height, run.image_strength) == (128, 96, 1.0)
    assert run.inpainting == Inpainting(result=(128, 96), box=(0, 0, 128, 96))
    overlay, blurred = (
        Image.frombytes(mode, (128, 96), blob) for mode, blob in zip(("RGB", "L"), blobs[-2:], strict=True)
    )
    assert overlay.crop((28, 0, 128, 66)).tobytes() == SOURCE.tobytes()
    assert blurred.crop((28, 0, 128, 66)).getbbox() is None
    assert blurred.getpixel((27, 0)) == blurred.getpixel((28, 66)) == 255


async def test_mask_waits_on_disk_and_is_there_after_a_restart(tmp_path: Path) -> None:
    options = settings(tmp_path)
    first = Script(at={"run": Hold()})
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=first.start) as service:
            job = await service.submit(masked(extend=Extend(top=14)))
            assert (await service.job(job.id)).request.mask == ""
    assert len(inputs(tmp_path)) == 2
    second = Script(at={"step 0/1": Crash()})
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=second.start) as service:
            done = await ended(service, job.id)
    assert done.status is Status.COMPLETED
    (one, one_blobs), (other, other_blobs) = runs(second)
    assert attrs.evolve(one, run_id=other.run_id) == other
    assert one_blobs == other_blobs
    assert Image.frombytes("RGB", (100, 80), one_blobs[-2]).crop((0, 14, 100, 80)).tobytes() == SOURCE.tobytes()
    assert inputs(tmp_path) == []
    assert done.request.inputs == ()
    assert done.request.inpainting is not None


def inputs(folder: Path) -> list[Path]:
    return [path for path in settings(folder).state_dir.rglob("*") if len(path.name) == 64]


async def test_mask_that_inpaints_nothing_is_refused_before_it_waits(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        black = to_base64(Image.new("L", (8, 8)))
        with pytest.raises(InvalidParameter, match="protects the whole image"):
            await service.submit(masked(mask=black))
        extended = await resolved(service, mask=black, extend=Extend(left=8))
    assert extended.inputs != ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask": to_base64(MASK.resize((66, 100)))}, "The mask has 66 × 100 pixels and the image 100 × 66"),
        ({"mask_blur": 2, "mask_blur_y": 1}, "'mask_blur_y' is not used"),
        ({"mask": None, "mask_blur": 2}, "nothing is masked; ignored: 'mask_blur'"),
    ],
)
async def test_what_is_not_done_stands_in_the_jobs_warnings(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        (warning,) = (await resolved(service, **changes)).warnings
    assert sentence in warning


async def resolved(service: Service, **changes: object) -> ResolvedRequest:
    return (await service.submit(masked(**changes), synchronous=True)).request
