"""``mflux-api doctor``: what will be used on this machine, what is wrong, and what to do about it."""

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import attrs
import psutil
import trio

from mflux_api.access.keys_file import MIN_LENGTH, read_keys, weak_keys
from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.folders import has_locks, temporary_problem, why_not_writable
from mflux_api.cli.running_server import call
from mflux_api.config import Settings, load_settings
from mflux_api.engine.interface import EngineDied
from mflux_api.engine.local import LocalEngine, LocalEngineOptions
from mflux_api.engine.protocol import Ready
from mflux_api.errors import ConfigError, ServiceError
from mflux_api.ipc.child_home import has_home
from mflux_api.ipc.printable import printable
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.database_file import count_jobs
from mflux_api.storage.sqlite import DATABASE_NAME
from mflux_api.system.network_variables import find_problem, proxy_for
from mflux_api.system.threads import read_in_thread
from mflux_api.version import package_version

_PACKAGES = ("trio", "hypercorn", "quart-trio", "mlx", "mflux", "huggingface_hub", "pillow", "attrs", "psutil")
_LOW_DISK_GB = 2.0

_State = Literal["ok", "warning", "problem"]


@attrs.frozen
class _Finding:
    """One line of the report."""

    subject: str
    says: str
    state: _State = "ok"
    advice: str = ""
    """What to do when it is not ok."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--report", action="store_true", help="as a block of Markdown, to paste into an issue")
    parser.add_argument("--url", help="ask a running server about its machine, in place of this one")


def run(options: argparse.Namespace) -> int:
    """Print the report.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: the server refuses.
        ConnectionError: no server answers where one is asked.
    """
    settings = load_settings(options.config)
    findings = trio.run(_examine, settings) if options.url is None else _ask_server(settings, options.url)
    report = _report(findings)
    print(f"```text\n{report}\n```" if options.report else report)
    return EXIT_FAILED if any(finding.state == "problem" for finding in findings) else 0


async def _examine(settings: Settings) -> list[_Finding]:
    """Look at this machine with these settings; starts one engine child and ends it."""
    findings = [*_versions(), *await _engine(settings), *_memory(), *_network()]
    findings += await read_in_thread(
        lambda: [*_keys(settings), *_models(settings), *_folders(settings), *_database(settings)]
    )
    return findings


def _ask_server(settings: Settings, url: str) -> list[_Finding]:
    """Ask a server how it is, and what it has."""
    health = call(settings, url, "GET", "health")
    system = call(settings, url, "GET", "system", holds="engines")
    well = health["status"] == "healthy"
    advice = str(health.get("problem") or "see its log")
    memory = system["system_memory_gb"]
    findings = [
        _Finding("mflux-api", str(health["version"])),
        _Finding("server", printable(health["status"]), "ok" if well else "problem", printable(advice)),
        _Finding("memory", f"{memory['free']:.1f} GB free of {memory['total']:.1f} GB"),
    ]
    for engine in system["engines"]:
        in_memory = ", ".join(map(str, engine["models"])) or "no model in memory"
        says = f"{engine['status']}, {engine['device']} ({engine['backend']}), {in_memory}"
        ready = engine["status"] in ("ready", "starting")
        wrong = str(engine["problem"] or "see the server's log")
        findings.append(
            _Finding(f"engine {engine['id']}", printable(says), "ok" if ready else "problem", printable(wrong))
        )
    if system["problem"]:
        findings.append(_Finding("job store", "cannot be written", "problem", printable(system["problem"])))
    return findings


def _keys(settings: Settings) -> Iterator[_Finding]:
    try:
        count = len(read_keys(settings.security).keys)
    except ConfigError as error:
        yield _Finding("API keys", "cannot be used", "problem", str(error))
        return
    weak = weak_keys(settings.security)
    says = f"{count}" if count else "none: open to all who reach the port"
    advice = f"use keys of {MIN_LENGTH} characters or more (mflux-api keys new)"
    yield _Finding("API keys", f"{says}, {weak} too short" if weak else says, "warning" if weak else "ok", advice)


def _versions() -> Iterator[_Finding]:
    yield _Finding("mflux-api", package_version())
    yield _Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        try:
            yield _Finding(name, version(name))
        except PackageNotFoundError:
            yield _Finding(name, "not installed", "problem", "install the dependencies again, see the README")


async def _engine(settings: Settings) -> list[_Finding]:
    options = LocalEngineOptions(
        start_timeout=settings.engine.start_timeout_seconds,
        devices=settings.engine.devices,
        fast_path=settings.engine.fast_path,
        kernels=settings.kernels_dir,
        home=settings.child_home,
    )
    async with trio.open_nursery() as nursery:
        try:
            engine = await LocalEngine.start(nursery, options)
        except EngineDied as died:
            wrong, _, known = died.reason.partition("; ")
            advice = known or "run again with --log-level debug; docs/install.md has what it needs"
            return [_Finding("engine", f"does not start: {wrong}", "problem", advice)]
        info = engine.info
        await engine.aclose()
    return [_Finding("engine", "starts"), *_device(info)]


def _device(info: Ready) -> Iterator[_Finding]:
    yield _Finding("backend", info.device, "warning" if info.advice else "ok", info.advice)
    yield _Finding("device", info.device_name)
    yield _Finding("precision", info.precision)
    if not info.blas:
        return
    if info.blas_fast:
        yield _Finding("BLAS", info.blas)
    else:
        yield _Finding("BLAS", info.blas, "warning", "many times slower than OpenBLAS; install libopenblas0")


def _memory() -> Iterator[_Finding]:
    memory = psutil.virtual_memory()
    yield _Finding("memory", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB")


def _network() -> Iterator[_Finding]:
    problem = find_problem(os.environ)
    if problem is not None:
        yield _Finding("network", f"{problem.variable} {problem.wrong}", "warning", f"{problem.advice}, and restart")
        return
    proxy = proxy_for(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", os.environ)
    if proxy is not None:
        yield _Finding("network", f"downloads go through the proxy of {proxy}")


def _models(settings: Settings) -> Iterator[_Finding]:
    catalog = settings.catalog()
    checkpoints = Checkpoints(settings.models.cache_dir)
    present = [model.alias for model in catalog if checkpoints.state(model).downloaded]
    yield _Finding("models on disk", ", ".join(present))
    for custom in settings.models.custom:
        model = catalog.get(custom.name)
        if model is not None and model.path is not None and not checkpoints.state(model).downloaded:
            advice = "path must be a folder in diffusers' layout, with model_index.json"
            yield _Finding(f"models.custom '{custom.name}'", "no checkpoint there", "problem", advice)
    if settings.models.default in present:
        yield _Finding("default model", settings.models.default)
    else:
        advice = f"mflux-api models download {settings.models.default}, or set models.default to demo"
        yield _Finding("default model", f"{settings.models.default} is not on disk", "warning", advice)


def _folders(settings: Settings) -> Iterator[_Finding]:
    for name, folder in (
        ("output directory", settings.generation.output_dir),
        ("state directory", settings.state_dir),
        ("models directory", settings.models.cache_dir),
    ):
        why = why_not_writable(folder)
        if why and name == "models directory" and _needs_no_download(settings):
            # A cache that others fill, mounted read-only.
            says = f"{_display_path(folder)} is read-only for this user ({why})"
            advice = "nothing can be downloaded or quantized into it; what is there is used as it is"
            yield _Finding(name, says, "warning", advice)
            continue
        if why:
            advice = "choose another in config.toml, or change its permissions"
            yield _Finding(name, f"{_display_path(folder)} cannot be written ({why})", "problem", advice)
            continue
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if (name != "output directory" or folder == settings.state_dir) and not has_locks(nearest):
            advice = "its file system has no locks: choose a folder on another disk in config.toml"
            yield _Finding(name, f"{_display_path(folder)} is on a disk without locks", "problem", advice)
            continue
        free = shutil.disk_usage(nearest).free / 1e9
        says = f"{_display_path(folder)}, {free:.1f} GB free"
        if free < _LOW_DISK_GB:
            yield _Finding(name, says, "warning", "free some space")
        else:
            yield _Finding(name, says)
    if not has_home():
        yield _Finding("home", "none that can be written: child processes have one in the state directory")
    problem = temporary_problem()
    if problem is not None:
        yield _Finding("temporary files", problem[0], "warning", problem[1])


def _needs_no_download(settings: Settings) -> bool:
    folder = settings.models.cache_dir
    default = settings.catalog().get(settings.models.default)
    return (folder.is_dir() or not os.path.lexists(folder)) and (
        default is not None and Checkpoints(folder).state(default).downloaded
    )


def _database(settings: Settings) -> Iterator[_Finding]:
    database = settings.state_dir / DATABASE_NAME
    if not database.exists():
        return
    try:
        yield _Finding("job database", f"{count_jobs(database)} job(s)")
    except (ConfigError, ServiceError) as error:
        wrong, _, advice = str(error).removeprefix(f"{DATABASE_NAME}: ").partition("; ")
        yield _Finding("job database", wrong, "problem", advice)


def _display_path(path: Path) -> str:
    """Return a path below the working directory, or the home folder, where it is there: reports are pasted."""
    home = os.path.expanduser("~")
    if path.is_relative_to(Path.cwd()):
        return f"./{path.relative_to(Path.cwd())}"
    return f"~/{path.relative_to(home)}" if home != "~" and path.is_relative_to(home) else str(path)


def _report(findings: list[_Finding]) -> str:
    """Return the findings as text, problems last."""
    width = max(len(finding.subject) for finding in findings)
    signs = {"ok": "✓", "warning": "!", "problem": "✗"}
    lines = [f"{signs[finding.state]} {finding.subject:<{width}}  {finding.says}" for finding in findings]
    todo = [f"  {finding.subject}: {finding.advice}" for finding in findings if finding.state != "ok"]
    return "\n".join([*lines, "", "What to do:", *todo] if todo else [*lines, "", "Nothing is wrong."])
