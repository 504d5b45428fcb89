"""``mflux-api models``: list, status, download, delete; load and unload through a running server.

Listing and downloading work on the models folder alone, unless ``--url`` names a server. Loading and unloading are a
running server's, and so is deleting while one runs.
"""

import argparse
import contextlib
import sys

import trio

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model
from mflux_api.cli.model_lines import READY, ModelLine, print_models, weights_text
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.running_server import call, lock_or_address
from mflux_api.cli.server_models import on_server
from mflux_api.cli.table import table
from mflux_api.config import Settings, load_settings
from mflux_api.hub.client import DownloadOptions, download_repository
from mflux_api.hub.protocol import DownloadProgress, DownloadRequest
from mflux_api.storage.checkpoints import Checkpoints


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    listing = commands.add_parser("list", parents=[shared], help="list the models, those on disk first")
    listing.add_argument("-l", "--long", action="store_true", help="also licences, and where models come from")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.add_argument("--url", help="the models of a running server")
    for action, help_text, several in (
        ("status", "say where a model is and what it is", False),
        ("download", "download models, going on where an earlier try ended", True),
        ("delete", "remove models that this service downloaded or quantized", True),
        ("load", "have a running server bring a model into memory", False),
        ("unload", "have a running server drop a model from memory", False),
    ):
        command = commands.add_parser(action, parents=[shared], help=help_text)
        command.add_argument("models", nargs="+" if several else 1, metavar="MODEL", help="an alias of the list")
        with_default = action in ("delete", "load", "unload")
        command.add_argument(
            "--url",
            help="the server (default: the address in the configuration)" if with_default else "a running server's",
        )


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: it cannot be done; the message says why.
        ConnectionError: no server answers where one is needed.
    """
    settings = load_settings(options.config)
    if options.url is not None and options.action in ("list", "status", "download"):
        return on_server(settings, options)
    if options.action == "list":
        print_models(_lines(settings), long=options.long, as_json=options.json)
        return 0
    models = [find_model(name, settings.catalog()) for name in options.models]
    for model in models:
        match options.action:
            case "status":
                print(_describe(model, Checkpoints(settings.models.cache_dir)))
            case "download":
                _download(model, settings)
            case "delete":
                _delete(model, settings, options.url)
            case action:
                answer = call(settings, options.url, "POST", f"models/{model.alias}/{action}")
                print(f"{model.alias}: {answer['status']}")
    return 0


# --- on this machine -----------------------------------------------------------------------------------------------


def _lines(settings: Settings) -> list[ModelLine]:
    checkpoints = Checkpoints(settings.models.cache_dir)
    return [
        ModelLine(
            model=model.alias,
            state=_state(model, checkpoints),
            size_gb=model.size_gb,
            weights=_weights(model),
            licence=model.licence + (" (gated)" if model.gated else ""),
            origin=_origin(model),
        )
        for model in settings.catalog()
    ]


def _state(model: Model, checkpoints: Checkpoints) -> str:
    if checkpoints.state(model).downloaded:
        return READY
    return "partial" if model.remote and checkpoints.hub.holds_files(model.repo) else "not downloaded"


def _weights(model: Model) -> str:
    return weights_text(model.quantization, model.bits)


def _origin(model: Model) -> str:
    if model.embedded:
        return "the package"
    return model.path or f"{model.repo}@{(model.revision or 'main')[:12]}"


def _describe(model: Model, checkpoints: Checkpoints) -> str:
    state = checkpoints.state(model)
    rows = [
        ("model", model.alias),
        ("state", _state(model, checkpoints)),
        ("path", str(state.path or "")),
        ("commit", state.commit or ""),
        ("size", "" if model.size_gb is None else f"{model.size_gb:.2f} GB ({model.size_source})"),
        ("from", _origin(model)),
        ("licence", model.licence + (" (gated)" if model.gated else "")),
        ("weights", _weights(model)),
        ("guidance", f"default {model.default_guidance:g}" if model.supports_guidance else "fixed at 1.0"),
    ]
    return table(row for row in rows if row[1])


def _download(model: Model, settings: Settings) -> None:
    checkpoints = Checkpoints(settings.models.cache_dir)
    if not model.remote:
        print(f"{model.alias}: nothing to download, it is {_origin(model)}")
        return
    if checkpoints.folder(model) is None:
        order = DownloadRequest(
            repo=model.repo,
            revision=model.revision,
            cache_dir=str(settings.models.cache_dir),
            licence=model.licence,
            files=model.files,
        )
        with ProgressBar(sys.stderr) as bar:
            bar.note(f"{model.alias}: asking the model hub")
            trio.run(_download_repository, order, DownloadOptions(home=settings.child_home), _Meter(bar, model.alias))
    print(f"{model.alias}: {checkpoints.folder(model)}")


async def _download_repository(order: DownloadRequest, options: DownloadOptions, meter: "_Meter") -> None:
    await download_repository(order, options, meter)


class _Meter:
    """Shows bytes, speed and the time that is left."""

    def __init__(self, bar: ProgressBar, alias: str) -> None:
        self._bar = bar
        self._alias = alias
        self._first: tuple[float, int] | None = None

    def __call__(self, progress: DownloadProgress) -> None:
        if progress.bytes_total is None:
            return
        now = trio.current_time()
        began, first = self._first = self._first or (now, progress.bytes_done)
        self._bar.transfer(
            self._alias,
            progress.bytes_done,
            progress.bytes_total,
            (progress.bytes_done - first) / (now - began) if now > began else None,
        )


# --- with a server -------------------------------------------------------------------------------------------------


def _delete(model: Model, settings: Settings, url: str | None) -> None:
    with contextlib.ExitStack() as stack:
        url = lock_or_address(settings, url, stack)
        if url is not None:
            call(settings, url, "DELETE", f"models/{model.alias}")
        else:
            checkpoints = Checkpoints(settings.models.cache_dir)
            checkpoints.check_deletable(model)
            checkpoints.delete(model)
    print(f"{model.alias}: deleted")
