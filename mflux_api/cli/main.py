"""The command line: the only place that touches signals, exit codes and the logging set-up."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import trio

from mflux_api.cli import doctor
from mflux_api.cli import generate as generate_options
from mflux_api.cli import models as model_commands
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.signals import StopSignals
from mflux_api.cli.watchdog import Watchdog
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError, InvalidModel, ServiceError, ServiceFailed
from mflux_api.jobs.progress import Finished
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.files import ImageFiles
from mflux_api.storage.loras import LoraFiles
from mflux_api.storage.repository import Repository
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from mflux_api.storage.state_lock import StateLock

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70
"""The supervision tree gave up (``EX_SOFTWARE``)."""
EXIT_INTERRUPTED = 130

HALT_SECONDS = 0.6
"""After the drain: what putting a halted job back into the queue may take; it is a write to the disk."""

RESPONSE_GRACE_SECONDS = 0.9
"""After the drain: until when answers that are on their way may be sent."""

STUCK_SECONDS = 5.0
"""After the drain: the hard limit, at which the watchdog ends the process. An end takes less than 2 s."""

LOG_PAUSE_SECONDS = 10.0

_LOG_LEVELS = {"serve": "info", "generate": "error", "models": "error", "doctor": "error"}

logger = logging.getLogger("mflux_api")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    _set_up_logging(options.log_level or _LOG_LEVELS[options.command])
    command = {"serve": _serve, "generate": _generate, "models": _models, "doctor": _doctor}[options.command]
    try:
        with _typed_failures():
            return command(options)
    except (ConfigError, OSError, ServiceError) as error:
        # The answer of the API has the names in its details.
        hint = "; `mflux-api models list` shows them all" if isinstance(error, InvalidModel) else ""
        print(f"mflux-api: {error}{hint}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except ServiceFailed as error:
        print(f"mflux-api: the service gave up: {error}", file=sys.stderr)
        return EXIT_INTERNAL
    except KeyboardInterrupt:
        print("mflux-api: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mflux-api", description="FLUX.2 Klein image generation on MLX.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: ./config.toml if present)")
    shared.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="what to report on standard error"
    )

    serve = commands.add_parser("serve", parents=[shared], help="serve the REST API")
    serve.add_argument("--host", help="address to listen on (default: 0.0.0.0)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 7861)")

    generate = commands.add_parser("generate", parents=[shared], help="generate an image and print its path")
    generate.add_argument("prompt", nargs="?", default="", help="what to generate; an upscaler needs none")
    generate.add_argument("--model", help="which model (default: models.default)")
    generate.add_argument("--negative-prompt", help="what not to generate (base models)")
    generate.add_argument("--seed", type=int, help="random seed (default: a new one)")
    generate.add_argument(
        "--width", type=int, help="pixels, a multiple of 16 (default: the model's, or the init image's)"
    )
    generate.add_argument(
        "--height", type=int, help="pixels, a multiple of 16 (default: the model's, or the init image's)"
    )
    generate.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    generate.add_argument("--guidance", type=float, help="guidance (base models)")
    generate.add_argument("--num-images", type=int, default=1, help="how many images (default: 1)")
    generate.add_argument("--low-ram", action="store_true", help="take longer and less memory")
    generate.add_argument(
        "--init-image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an image to edit (up to four) or to upscale",
    )
    generate.add_argument("--image-strength", type=float, help="how much to transform it, 0 to 1 (default: 0.75)")
    generate.add_argument("--upscale", type=float, help="upscalers: times as large (default: 2)")
    generate.add_argument("--resolution", type=int, help="upscalers: the result's shorter side in pixels")
    generate.add_argument(
        "--softness", type=float, help="upscalers: how much detail to invent anew, 0 to 1 (default: 0)"
    )
    generate.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:SCALE]", help="a LoRA of lora.dirs or a file; repeatable"
    )
    generate.add_argument("--output-dir", type=Path, help="where to put them (default: ./output)")

    models = commands.add_parser("models", help="list, download, delete, load and unload models")
    model_commands.add_arguments(models, shared)

    commands.add_parser("doctor", parents=[shared], help="say what will be used here, and what is wrong")
    return parser


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    # Of strangers' images, which are taken or refused all the same; each would print a path of this machine.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Where descriptors run out Trio tries to accept ten times a second, with a traceback each time.
    logging.getLogger("trio.serve_listeners").addFilter(_NowAndThen())


class _NowAndThen(logging.Filter):
    """Passes a line every ten seconds, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_PAUSE_SECONDS
        return True


@contextmanager
def _typed_failures() -> Iterator[None]:
    """Turn a group that holds one error into that error."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


# --- serve ---------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    overrides: dict[str, dict[str, Any]] = {"server": {"host": options.host, "port": options.port}}
    settings = load_settings(options.config, overrides=overrides)
    with Watchdog(EXIT_INTERNAL) as watchdog:
        stop = StopSignals(
            on_first=partial(watchdog.arm, settings.server.drain_timeout_seconds + STUCK_SECONDS),
            on_second=partial(watchdog.arm, STUCK_SECONDS),
        )
        with stop.installed(), StateLock(settings.state_dir):
            _serve_jobs(settings, stop)
    return 0


def _serve_jobs(settings: Settings, stop: StopSignals) -> None:
    _remove_leftovers(settings)
    with SqliteRepository(settings.state_dir / DATABASE_NAME) as repository:
        trio.run(_serve_until_signal, settings, repository, stop)


def _remove_leftovers(settings: Settings) -> None:
    try:
        count = ImageFiles(settings.generation.output_dir).remove_leftovers()
        uploads = LoraFiles(settings.lora.dirs).remove_leftovers()
    except OSError as error:
        logger.warning("half-written files cannot be removed: %s", error.strerror)
        return
    if count:
        logger.info("removed %d half-written image(s) of a server that was killed", count)
    if uploads:
        logger.info("removed %d half-written LoRA(s) of a server that was killed", uploads)


async def _serve_until_signal(settings: Settings, repository: Repository, stop: StopSignals) -> None:
    if not _is_loopback(settings.server.host) and not settings.security.api_keys:
        logger.warning(
            "listening on %s without an API key: anybody who reaches this port can use it "
            "(set server.host to 127.0.0.1 or security.api_keys)",
            settings.server.host,
        )
    stop.listen()
    async with open_service(settings, repository=repository) as service, trio.open_nursery() as nursery:
        for url in await nursery.start(service.serve_http):
            logger.info("listening on %s", url)
        await stop.first.wait()
        await _drain(service, settings.server.drain_timeout_seconds, stop.second)
        nursery.cancel_scope.cancel()
    logger.info("stopped")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _drain(service: Service, seconds: float, at_once: trio.Event) -> None:
    """Let the running job end, for so long or until told otherwise; then stop it and give it back to the queue."""
    logger.info("draining: no new work; waiting up to %g s for the running job", seconds)
    deadline = trio.current_time() + seconds
    with trio.move_on_at(deadline):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, at_once, nursery.cancel_scope)
            await service.drain()
            nursery.cancel_scope.cancel()
    deadline = min(deadline, trio.current_time()) if at_once.is_set() else deadline
    service.end_by(deadline + RESPONSE_GRACE_SECONDS)
    with trio.move_on_after(HALT_SECONDS):
        await service.drain(halt=True)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


# --- doctor --------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    findings = trio.run(doctor.examine, load_settings(options.config))
    print(doctor.report(findings))
    return EXIT_FAILED if any(finding.state == "problem" for finding in findings) else 0


# --- models --------------------------------------------------------------------------------------------------------


def _models(options: argparse.Namespace) -> int:
    return model_commands.run(options, load_settings(options.config))


# --- generate ------------------------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> int:
    overrides: dict[str, dict[str, Any]] = {"generation": {"output_dir": options.output_dir}}
    settings = load_settings(options.config, overrides=overrides)
    model = settings.catalog().get(options.model or settings.models.default)
    width, height = model.native_size if model is not None and not options.init_image else (None, None)
    named = generate_options.loras(options.lora, settings)
    request = GenerateRequest(
        prompt=options.prompt.strip(),
        model=options.model,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        width=options.width if options.width is not None else width,
        height=options.height if options.height is not None else height,
        steps=options.steps,
        guidance=options.guidance,
        num_images=options.num_images,
        low_ram=options.low_ram,
        init_images=generate_options.init_images(options.init_image),
        image_strength=options.image_strength,
        resolution=options.resolution,
        upscale=options.upscale,
        softness=options.softness,
        lora_files=named.files,
        lora_scales=named.scales,
    )
    for path in trio.run(partial(_generate_images, named.settings, request)):
        print(path)
    return 0


async def _generate_images(settings: Settings, request: GenerateRequest) -> list[str]:
    # Nobody looks at previews here.
    async with open_service(settings, previews=False) as service:
        with ProgressBar(sys.stderr) as bar:
            bar.note("starting the engine")
            job = await service.submit(request)
            async with service.events(job.id) as events:
                async for event in events:
                    if not isinstance(event, Finished):
                        bar.update(event)
            result = await service.result(job.id)
    return [image.path for image in result.images]
