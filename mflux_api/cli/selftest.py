"""``mflux-api selftest``: whether generating is right on this machine, as a report to paste; takes under two minutes.

Everything runs through a service of its own with the embedded model, in a temporary folder: the state, the images and
the models of the configuration are not touched.
"""

import argparse
import base64
import math
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from mflux_api.actors.messages import EngineCondition
from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.selftest_files import psnr, rgb_of, write_noise_lora
from mflux_api.config import (
    CustomModel,
    EngineSettings,
    GenerationSettings,
    LoraSettings,
    ModelSettings,
    Settings,
    load_settings,
)
from mflux_api.engine.protocol import Ready
from mflux_api.errors import EngineUnavailable, ServiceError
from mflux_api.jobs.job import Stage, StoredImage
from mflux_api.jobs.progress import Finished, Progress
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Result, Service, open_service
from mflux_api.storage.checkpoints import EMBEDDED
from mflux_api.version import package_version

RECORDED = Path(__file__).with_name("selftest.png")
RECORDED_EDIT = Path(__file__).with_name("selftest_edit.png")

PROMPT = "a beautiful sunset over mountains"
EDIT_PROMPT = "make it an ink drawing"
_BASE = "flux2-klein-4b"
"""Its place in the catalog is lent to the embedded weights, because its forms of fewer bits follow it."""
_SIZE = 256
_SMALL_SIZE = 128
_SEED = 7
_LORA = "selftest.safetensors"

IMAGE_FLOOR = {"float32": 60.0, "bfloat16": 40.0}
"""PSNR in dB from the image recorded in float32. Seen: 96 and more on other CPUs, 51.7 on CUDA in bfloat16."""
QUANTIZED_FLOOR = {8: 30.0, 4: 20.0}
"""Seen in float32: 54.9 and 31.5 dB; in bfloat16 on CUDA, at 256 × 256, 51.7 and 33.2."""
LOW_RAM_FLOOR = 40.0
"""Another decode mode, which rounds otherwise in bfloat16. Seen on CUDA: 60.3 dB."""
STOP_SECONDS = 1.0
"""What a cancelled run may take to stop beyond the step that it is in."""
MEMORY_LEFT = 32 << 20
"""Bytes of arrays that an engine may keep without a model."""

_TIMEOUT_SECONDS = 300.0


@attrs.frozen
class Outcome:
    """One line of the report."""

    good: bool
    says: str


class Selftest:
    """The checks on one running service; each compares with what those before it left."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._folder = folder
        self._first: Result | None = None
        self._small: Result | None = None

    @property
    def checks(self) -> Mapping[str, Callable[[], Awaitable[Outcome]]]:
        """Name → check, in the order in which they run."""
        return {
            "image": self.image,
            "same bits": self.same_bits,
            "edit": self.edit,
            "LoRA": self.lora,
            "8 bits": partial(self.quantized, 8),
            "4 bits": partial(self.quantized, 4),
            "low_ram": self.low_ram,
            "cancel": self.cancel,
            "killed engine": self.killed_engine,
            "memory": self.memory,
        }

    async def image(self) -> Outcome:
        """Compare an image with the recorded one."""
        self._first = result = await self._generate()
        decibels = await self._distance(result.images[0], RECORDED)
        floor = IMAGE_FLOOR[(await self.info()).precision]
        times = result.timings
        return Outcome(
            decibels >= floor,
            f"{decibels:.1f} dB from the recorded one (at least {floor:g}); load {times.load:.1f} s, encode "
            f"{times.encode:.2f} s, a step {times.denoise / 4:.2f} s, decode {times.decode:.2f} s",
        )

    async def same_bits(self) -> Outcome:
        """Ask for the same again."""
        again = await self._generate()
        times = again.timings
        same = await self._is_reference(again)
        return Outcome(same, f"{'equal' if same else 'DIFFERENT'}; warm: a step {times.denoise / 4:.2f} s")

    async def edit(self) -> Outcome:
        """Edit the image by a prompt, and compare with the recorded edit."""
        source = base64.b64encode(RECORDED.read_bytes()).decode()
        result = await self._generate(prompt=EDIT_PROMPT, init_images=(source,), image_strength=1.0)
        decibels = await self._distance(result.images[0], RECORDED_EDIT)
        floor = IMAGE_FLOOR[(await self.info()).precision]
        return Outcome(decibels >= floor, f"{decibels:.1f} dB from the recorded one (at least {floor:g})")

    async def lora(self) -> Outcome:
        """Put a LoRA on and take it off again."""
        write_noise_lora(self._folder / "loras" / _LORA, EMBEDDED)
        adapted = await self._generate(lora_files=(_LORA,), lora_scales=(1.0,))
        zero = await self._generate(lora_files=(_LORA,), lora_scales=(0.0,))
        off = await self._generate()
        changed = not await self._is_reference(adapted)
        restored = await self._is_reference(zero) and await self._is_reference(off)
        on = "changes the image" if changed else "CHANGES NOTHING"
        return Outcome(changed and restored, f"{on}; {'gone without a trace' if restored else 'LEAVES A TRACE'}")

    async def quantized(self, bits: int) -> Outcome:
        """Compare the model in fewer bits with itself, in a smaller size: a CPU takes long for these."""
        if self._small is None:
            self._small = await self._generate(width=_SMALL_SIZE, height=_SMALL_SIZE)
        result = await self._generate(model=f"{_BASE}-{bits}-bit", width=_SMALL_SIZE, height=_SMALL_SIZE)
        decibels = await self._distance(result.images[0], Path(self._small.images[0].path))
        floor, times = QUANTIZED_FLOOR[bits], result.timings
        return Outcome(
            decibels >= floor,
            f"{decibels:.1f} dB from all bits (at least {floor:g}); load {times.load:.1f} s, a step "
            f"{times.denoise / 4:.2f} s",
        )

    async def low_ram(self) -> Outcome:
        """Compare the image of the mode for little memory."""
        result = await self._generate(low_ram=True)
        decibels = await self._distance(result.images[0], Path(self._reference.path))
        return Outcome(decibels >= LOW_RAM_FLOOR, f"{decibels:.1f} dB from the usual mode (at least {LOW_RAM_FLOOR:g})")

    async def cancel(self) -> Outcome:
        """Cancel a long job after its first step, and see when the engine is free for another."""
        step, last = 0.0, time.monotonic()
        job = await self._service.submit(self._request(steps=200))
        async with self._service.events(job.id) as events:
            async for event in events:
                if isinstance(event, Progress) and event.step >= 2:
                    step = time.monotonic() - last
                    break
                last = time.monotonic()
        asked = time.monotonic()
        await self._service.cancel(job.id)
        follower = await self._service.submit(self._request(steps=1))
        async with self._service.events(follower.id) as events:
            async for event in events:
                if isinstance(event, Finished) or event.stage not in {Stage.QUEUED, Stage.LOADING}:
                    break
        seconds = time.monotonic() - asked
        await self._service.result(follower.id)
        limit = step + STOP_SECONDS
        return Outcome(seconds <= limit, f"the engine is free after {seconds:.2f} s (at most {limit:.2f})")

    async def killed_engine(self) -> Outcome:
        """Kill the engine in the middle of a job: the job is generated by the next one, with the same bits."""
        killed = (await self.info()).pid
        job = await self._service.submit(self._request())
        began = time.monotonic()
        async with self._service.events(job.id) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage is Stage.DENOISING and event.step >= 1:
                    os.kill(killed, signal.SIGKILL)
                    break
        result = await self._service.result(job.id)
        same = await self._is_reference(result)
        replaced = (await self.info()).pid != killed and result.job.engine_deaths == 1
        image = "the same image" if same else "ANOTHER IMAGE"
        engine = "from another one" if replaced else "from the SAME one"
        return Outcome(same and replaced, f"{image} {engine} after {time.monotonic() - began:.1f} s")

    async def memory(self) -> Outcome:
        """Unload everything and see what the engine still holds."""
        (before,) = await self._service.engines()
        for model in before.models:
            await self._service.unload(model)
        (after,) = await self._service.engines()
        held = 0 if before.state is None else before.state.active_bytes
        left = math.inf if after.state is None else after.state.active_bytes
        return Outcome(
            left <= MEMORY_LEFT and not after.models,
            f"{held / 1e6:.0f} MB with a model, {left / 1e6:.0f} MB without (at most {MEMORY_LEFT / 1e6:.0f})",
        )

    # --- helpers ---

    @property
    def _reference(self) -> StoredImage:
        if self._first is None:
            raise RuntimeError("the check of the image comes first")
        return self._first.images[0]

    def _request(self, **fields: Any) -> GenerateRequest:
        plain = GenerateRequest(prompt=PROMPT, model=_BASE, seed=_SEED, width=_SIZE, height=_SIZE, steps=4)
        return attrs.evolve(plain, **fields)

    async def _generate(self, **fields: Any) -> Result:
        with trio.fail_after(_TIMEOUT_SECONDS):
            return await self._service.result((await self._service.submit(self._request(**fields))).id)

    async def info(self) -> Ready:
        """Return what the engine says of itself, once it is up.

        Raises:
            EngineUnavailable: it keeps dying at its start.
        """
        with trio.fail_after(_TIMEOUT_SECONDS):
            while True:
                (engine,) = await self._service.engines()
                if engine.info is not None:
                    return engine.info
                if engine.status.condition in (EngineCondition.DEGRADED, EngineCondition.FAILED):
                    raise EngineUnavailable.because(engine.status.reason)
                await trio.sleep(0.05)

    async def _is_reference(self, result: Result) -> bool:
        # Their files differ where one's parameters name a LoRA.
        return await self._distance(result.images[0], Path(self._reference.path)) == math.inf

    async def _distance(self, image: StoredImage, other: Path) -> float:
        return psnr(await rgb_of(Path(image.path)), await rgb_of(other))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--devices", choices=["auto", "cpu", "gpu"], help="what to test (default: engine.devices)")


def run(options: argparse.Namespace) -> int:
    """Run every check and print the report.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: the engine does not start; the message says why.
    """
    settings = load_settings(options.config, overrides={"engine": {"devices": options.devices}})
    return EXIT_FAILED if trio.run(_report, settings.engine) else 0


def settings_in(folder: Path, engine: EngineSettings) -> Settings:
    """Return settings under which everything lies in ``folder``, and the embedded model stands for Klein 4B."""
    return Settings(
        models=ModelSettings(
            default="demo",
            cache_dir=folder / "models",
            custom=(CustomModel(name=_BASE, base=_BASE, path=EMBEDDED),),
        ),
        generation=GenerationSettings(output_dir=folder / "output"),
        lora=LoraSettings(dirs=(folder / "loras",)),
        engine=engine,
    )


async def _report(engine: EngineSettings) -> int:
    """Print a line for each check as it ends; return how many went wrong."""
    began, wrong = time.monotonic(), 0
    print(f"mflux-api {package_version()} selftest, {platform.system()} {platform.machine()}")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "loras").mkdir()
        async with open_service(settings_in(Path(name), engine)) as service:
            selftest = Selftest(service, Path(name))
            print(f"  {_described(await selftest.info())}")
            for subject, check in selftest.checks.items():
                if sys.stderr.isatty():
                    print(f"  {subject} …", end="\r", file=sys.stderr, flush=True)
                outcome = await _outcome_of(check)
                print(f"{'✓' if outcome.good else '✗'} {subject:<13}  {outcome.says}", flush=True)
                wrong += not outcome.good
    verdict = "Everything is right." if not wrong else f"{wrong} of these went wrong; please report it with this text."
    print(f"{verdict} {time.monotonic() - began:.0f} s")
    return wrong


async def _outcome_of(check: Callable[[], Awaitable[Outcome]]) -> Outcome:
    try:
        return await check()
    except (ServiceError, trio.TooSlowError) as error:
        return Outcome(good=False, says=f"{type(error).__name__}: {error}")


def _described(info: Ready) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    blas = f", BLAS {info.blas}" if info.blas else ""
    return f"{info.device_name} ({info.device}), {info.precision}{blas}, {versions}"
