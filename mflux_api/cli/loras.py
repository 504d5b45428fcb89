"""``mflux-api loras``: list the LoRA files of ``lora.dirs``, say what they hold, add and remove them.

It works on the disk, with or without a running server, unless ``--url`` names one; removing goes through the server
that runs on this state directory, which knows whether a job needs the file.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mflux_api.cli.running_server import connected, lock_or_address
from mflux_api.cli.table import table
from mflux_api.config import Settings, load_settings
from mflux_api.ipc.printable import printable
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.storage.lora_lookup import find_listed
from mflux_api.storage.loras import LoraFiles

if TYPE_CHECKING:
    from mflux_api.client import Lora
    from mflux_api.images.child.protocol import DescribedLora

_HEADER = ("LORA", "FORMAT", "RANK", "LAYERS", "TEXT ENCODER", "SIZE", "BASE", "PROBLEM")


@attrs.frozen(kw_only=True)
class _Line:
    """One LoRA of a list, wherever it lies."""

    name: str
    size_bytes: int
    format: str | None = None
    rank: int | None = None
    base: str | None = None
    layers: int | None = None
    layers_understood: int | None = None
    text_encoder_layers: int | None = None
    unknown: tuple[str, ...] = ()
    problem: str | None = None


@attrs.frozen
class _Listing:
    lines: tuple[_Line, ...]
    skipped: tuple[tuple[str, str], ...]
    """Names of what is left out, and why."""
    skipped_total: int


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    listing = commands.add_parser("list", parents=[shared], help="list the LoRAs, what they hold, and what is left out")
    info = commands.add_parser("info", parents=[shared], help="say all that is known of one")
    add = commands.add_parser("add", parents=[shared], help="copy a file into the first folder of lora.dirs")
    remove = commands.add_parser("remove", parents=[shared], help="delete one's file")
    for command in (listing, info):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (info, remove):
        command.add_argument("name", metavar="NAME", help="of the list")
    add.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    add.add_argument("--name", help="what it is called there (default: as the file)")
    add.add_argument("--overwrite", action="store_true", help="replace one of that name")
    for command in (listing, info, add, remove):
        command.add_argument("--url", help="a running server's LoRAs")


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: it cannot be done; the message says why.
        OSError: no server answers, or a file cannot be written.
    """
    settings = load_settings(options.config)
    match options.action:
        case "list":
            _print_list(_look(settings, options.url), as_json=options.json)
        case "info":
            _print_one(_find(settings, options.url, options.name), as_json=options.json)
        case "add":
            print(_add(settings, options))
        case "remove":
            print(f"{printable(_remove(settings, options.url, options.name))}: removed")
    return 0


# --- list, info ----------------------------------------------------------------------------------------------------


def _look(settings: Settings, url: str | None) -> _Listing:
    if url is not None:
        with connected(settings, url, retries=3) as client:
            theirs = client.loras()
        skipped = tuple((each.name, each.reason) for each in theirs.skipped)
        return _Listing(tuple(map(_line, theirs.loras)), skipped, theirs.skipped_total)
    # The decoder's side is a tenth of a second, which the other commands here do without.
    from mflux_api.cli.lora_files import describe_files

    ours = LoraFiles.from_settings(settings).look()
    lines = tuple(map(_described, ours.files, describe_files(ours.files)))
    skipped = tuple((each.name, each.reason) for each in ours.skipped)
    return _Listing(lines, skipped, ours.skipped_total)


def _described(file: LoraFile, described: "DescribedLora") -> _Line:
    contents = described.contents
    held: dict[str, Any] = {"problem": described.problem or "its header was not read"}
    if contents is not None:
        held = {
            "format": contents.format,
            "rank": contents.rank,
            "base": contents.base,
            "layers": contents.layers,
            "layers_understood": contents.understood,
            "text_encoder_layers": contents.text_encoder_layers,
            "unknown": tuple(contents.unknown),
        }
    return _Line(name=file.name, size_bytes=file.size, **held)


def _line(lora: "Lora") -> _Line:
    return _Line(**{field.name: getattr(lora, field.name) for field in attrs.fields(_Line)})


def _find(settings: Settings, url: str | None, name: str) -> _Line:
    if url is None:
        from mflux_api.cli.lora_files import describe_files

        # The error names what is close, or why it is left out.
        file = find_listed(LoraFiles.from_settings(settings).look(), name)
        (described,) = describe_files([file])
        return _described(file, described)
    listing = _look(settings, url)
    wanted = name.removesuffix(".safetensors")
    found = next((line for line in listing.lines if line.name.removesuffix(".safetensors") == wanted), None)
    if found is None:
        from mflux_api.storage.lora_lookup import not_found

        raise not_found(name)
    return found


def _print_list(listing: _Listing, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([attrs.asdict(line) for line in listing.lines], indent=2))
        return
    lines = []
    if listing.lines:
        lines.append(table([_HEADER, *map(_row, listing.lines)]))
    else:
        lines.append("no LoRAs: put .safetensors files into a folder of lora.dirs")
    if listing.skipped:
        lines.append(f"\nleft out ({listing.skipped_total}):")
        lines.append(table((f"  {printable(name)}", printable(reason)) for name, reason in listing.skipped))
    if more := listing.skipped_total - len(listing.skipped):
        lines.append(f"  and {more} more")
    print("\n".join(lines))


def _row(line: _Line) -> tuple[str, ...]:
    size, name = f"{line.size_bytes / 1e6:.1f} MB", printable(line.name)
    if line.layers is None:
        return (name, "", "", "", "", size, "", printable(line.problem or "its header was not read"))
    return (
        name,
        line.format or "",
        "" if line.rank is None else str(line.rank),
        f"{line.layers_understood} of {line.layers}",
        str(line.text_encoder_layers or ""),
        size,
        printable(line.base or ""),
        "",
    )


def _print_one(line: _Line, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(attrs.asdict(line), indent=2))
        return
    layers = "" if line.layers is None else f"{line.layers_understood} of {line.layers} understood"
    rows = [
        ("name", line.name),
        ("size", f"{line.size_bytes / 1e6:.1f} MB"),
        ("format", line.format or ""),
        ("rank", "" if line.rank is None else str(line.rank)),
        ("trained on", line.base or ""),
        ("layers", layers),
        ("of a text encoder", f"{line.text_encoder_layers}, without effect here" if line.text_encoder_layers else ""),
        ("not known", ", ".join(line.unknown)),
        ("problem", line.problem or ""),
        ("use", f"mflux-api generate … --lora '{line.name.removesuffix('.safetensors')}:0.8'"),
    ]
    print(table((name, printable(value)) for name, value in rows if value))


# --- add, remove ---------------------------------------------------------------------------------------------------


def _add(settings: Settings, options: argparse.Namespace) -> str:
    file: Path = options.file.expanduser()
    name: str = options.name or file.name
    if options.url is not None:
        with connected(settings, options.url) as client:
            return client.add_lora(file, name, overwrite=options.overwrite).name
    from mflux_api.cli.lora_files import add_file

    loras, most = LoraFiles.from_settings(settings), settings.lora.max_upload_mb * 2**20
    return add_file(loras, file, name, overwrite=options.overwrite, max_bytes=most).name


def _remove(settings: Settings, url: str | None, name: str) -> str:
    with contextlib.ExitStack() as stack:
        url = lock_or_address(settings, url, stack)
        if url is not None:
            stack.enter_context(connected(settings, url)).delete_lora(name)
            return name
        loras = LoraFiles.from_settings(settings)
        removal = loras.plan_removal(name)
        loras.remove(removal.file)
        return removal.file.name
