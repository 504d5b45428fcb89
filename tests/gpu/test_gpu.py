"""The engine on a GPU, through a service: bounds that are fit for bfloat16, seen on CUDA (an H200)."""

import base64
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from PIL import Image

from mflux_api.cli import selftest
from mflux_api.cli.selftest import Selftest, settings_in
from mflux_api.cli.selftest_files import psnr, rgb_of
from mflux_api.config import CustomModel, EngineSettings, MemorySettings
from mflux_api.errors import OutOfMemory
from mflux_api.jobs.job import StoredImage
from mflux_api.jobs.progress import PartialImage
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GPU = EngineSettings(devices="gpu")
REQUEST = GenerateRequest(prompt=selftest.PROMPT, model="flux2-klein-4b", seed=7, width=256, height=256, steps=4)
NEAR = 30.0
"""PSNR in dB of the same image in two ways that round differently in bfloat16."""
FORMS = {8: 30.0, 6: 25.0, 4: 15.0, 3: 10.0}
"""Bits → PSNR in dB from all bits."""


@asynccontextmanager
async def gpu_service(folder: Path, **sections: Any) -> AsyncIterator[Service]:
    """A service on the GPU whose Klein 4B is the embedded checkpoint."""
    (folder / "loras").mkdir()
    async with open_service(attrs.evolve(settings_in(folder, GPU), **sections)) as service:
        yield service


async def generate(service: Service, **fields: Any) -> tuple[StoredImage, ...]:
    """Return the images of one job."""
    job = await service.submit(attrs.evolve(REQUEST, **fields))
    return (await service.result(job.id)).images


async def distance(one: StoredImage, other: StoredImage) -> float:
    return psnr(await rgb_of(Path(one.path)), await rgb_of(Path(other.path)))


async def test_everything_of_the_self_test_holds(tmp_path: Path) -> None:
    """The demo against its CPU image, an edit, a LoRA, 8 and 4 bits, low_ram, cancel, a killed engine, memory."""
    async with gpu_service(tmp_path) as service:
        checks = Selftest(service, tmp_path).checks
        said = {name: await check() for name, check in checks.items()}
    assert all(outcome.good for outcome in said.values()), said


async def test_forms_of_fewer_bits_lose_more_and_more(tmp_path: Path) -> None:
    async with gpu_service(tmp_path) as service:
        (whole,) = await generate(service)
        for bits, floor in FORMS.items():
            (image,) = await generate(service, model=f"flux2-klein-4b-{bits}-bit")
            decibels = await distance(image, whole)
            assert floor <= decibels, f"{bits} bits"
            (again,) = await generate(service, model=f"flux2-klein-4b-{bits}-bit")
            assert again.sha256 == image.sha256


async def test_image_of_a_batch_is_the_one_generated_alone(tmp_path: Path) -> None:
    async with gpu_service(tmp_path) as service:
        batch = await generate(service, num_images=4)
        for image in batch:
            (alone,) = await generate(service, seed=image.seed)
            assert await distance(alone, image) >= NEAR


async def test_base_form_with_guidance_and_references(tmp_path: Path) -> None:
    """Two branches in one batch, and two images to edit: reproducible to the bit."""
    sources = tuple(png(color) for color in ("navy", "orange"))
    async with gpu_service(tmp_path) as service:
        fields: Mapping[str, Any] = {"init_images": sources, "image_strength": 1.0}
        (one,) = await generate(service, **fields)
        (two,) = await generate(service, **fields)
        (guided,) = await generate(service, model="demo-base", steps=6, guidance=4.0, negative_prompt="a sun")
        (plain,) = await generate(service, model="demo-base", steps=6, guidance=1.0)
    assert one.sha256 == two.sha256
    assert await distance(guided, plain) < NEAR


async def test_partial_images_change_no_pixel_and_come_nearer_to_the_image(tmp_path: Path) -> None:
    async with gpu_service(tmp_path) as service:
        (plain,) = await generate(service)
        job = await service.submit(attrs.evolve(REQUEST, partial_images=3))
        async with service.events(job.id, partial_images=True) as events:
            shown = [event async for event in events if isinstance(event, PartialImage)]
        (image,) = (await service.result(job.id)).images
        pixels = await rgb_of(Path(image.path))
    # Those that are encoded when the run ends are left out: a GPU may be faster.
    assert {partial.partial_image_index for partial in shown} <= {0, 1, 2}
    assert image.sha256 == plain.sha256
    near = [psnr(Image.open(io.BytesIO(base64.b64decode(partial.base64))).tobytes(), pixels) for partial in shown]
    assert near == sorted(near)
    assert all(15 < decibels < float("inf") for decibels in near), near


async def test_stopped_run_leaves_a_model_that_generates_the_same_bits(tmp_path: Path) -> None:
    async with gpu_service(tmp_path) as service:
        (before,) = await generate(service)
        for low_ram in (False, True):
            job = await service.submit(attrs.evolve(REQUEST, steps=100, low_ram=low_ram))
            async with service.events(job.id) as events:
                async for event in events:
                    if getattr(event, "step", 0) >= 1:
                        break
            await service.cancel(job.id)
            (after,) = await generate(service)
            assert after.sha256 == before.sha256


async def test_what_does_not_fit_is_refused_and_the_next_is_generated(tmp_path: Path) -> None:
    async with gpu_service(tmp_path, memory=MemorySettings(budget_gb=0.2)) as service:
        settings = service.settings
        assert settings.memory.budget_gb == 0.2
        await generate(service)
    (tmp_path / "small").mkdir()
    async with gpu_service(tmp_path / "small", memory=MemorySettings(budget_gb=0.01)) as service:
        with pytest.raises(OutOfMemory):
            await generate(service)


async def test_upscaling(tmp_path: Path) -> None:
    from tests.support.upscaler_checkpoint import write_upscaler

    await trio.to_thread.run_sync(write_upscaler, tmp_path / "seedvr2")
    models = attrs.evolve(
        settings_in(tmp_path, GPU).models,
        custom=(CustomModel(name="seedvr2", base="seedvr2", path=tmp_path / "seedvr2"),),
    )
    async with gpu_service(tmp_path, models=models) as service:
        request = GenerateRequest(model="seedvr2", init_images=(png("teal"),), upscale=2.0, seed=1)
        images = [(await service.result((await service.submit(request)).id)).images[0] for _ in range(2)]
    assert (images[0].width, images[0].height) == (128, 128)
    assert images[0].sha256 == images[1].sha256


def png(color: str) -> str:
    """Return an image with a diagonal, as a request carries it."""
    image = Image.new("RGB", (64, 64), color)
    for place in range(64):
        image.putpixel((place, place), (255, 255, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
