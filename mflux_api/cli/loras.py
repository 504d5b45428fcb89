"""``mflux-api loras``: list the LoRA files of ``lora.dirs``, what they hold, and what is left out.

It looks at the disk alone, with or without a running server. Headers are read by a decoder's child, as in a server: the
files may be strangers'.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.decoder import Decoder
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.cli.table import table
from mflux_api.config import load_settings
from mflux_api.gateway.lora_contents import LoraContentsCache
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.ipc.printable import printable
from mflux_api.storage.lora_folders import Listing, LoraFile
from mflux_api.storage.loras import LoraFiles
from mflux_api.supervisor import Started

_HEADER = ("LORA", "FORMAT", "RANK", "LAYERS", "TEXT ENCODER", "SIZE", "BASE", "PROBLEM")
_UNREAD = DescribedLora()
_TRIES = 3
"""Looks in which no further header was read, after which it is left at that."""


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("list", parents=[shared], help="list the LoRAs, what they hold, and what is left out")


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    settings = load_settings(options.config)
    listing = LoraFiles.from_settings(settings).look()
    described = trio.run(partial(_describe, listing.files)) if listing.files else ()
    print(_listing(listing, described))
    return 0


async def _describe(files: Sequence[LoraFile]) -> tuple[DescribedLora, ...]:
    """Have the headers read by a decoder of our own."""
    mailbox: Mailbox[m.DecoderMessage] = Mailbox(m.DECODER)
    decoding = Decoding(Address(mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH).ask)
    cache = LoraContentsCache(decoding.describe_loras)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Decoder(mailbox).run, Started())
        described = await cache.describe(files)
        tries = _TRIES
        while _UNREAD in described and tries:
            before, described = described, await cache.describe(files)
            tries = _TRIES if described != before else tries - 1
        nursery.cancel_scope.cancel()
    return described


def _listing(listing: Listing, described: Sequence[DescribedLora]) -> str:
    lines = []
    if listing.files:
        lines.append(table([_HEADER, *map(_row, listing.files, described)]))
    else:
        lines.append("no LoRAs: put .safetensors files into a folder of lora.dirs")
    if listing.skipped:
        lines.append(f"\nleft out ({listing.skipped_total}):")
        lines.append(table((f"  {each.name}", each.reason) for each in listing.skipped))
    if more := listing.skipped_total - len(listing.skipped):
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def _row(file: LoraFile, described: DescribedLora) -> tuple[str, ...]:
    contents, size = described.contents, f"{file.size / 1e6:.1f} MB"
    if contents is None:
        return (printable(file.name), "", "", "", "", size, "", described.problem or "its header was not read")
    return (
        printable(file.name),
        contents.format,
        "" if contents.rank is None else str(contents.rank),
        f"{contents.understood} of {contents.layers}",
        str(contents.text_encoder_layers or ""),
        size,
        contents.base or "",
        "",
    )
