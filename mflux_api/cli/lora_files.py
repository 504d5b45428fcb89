"""LoRA files of this machine's ``lora.dirs``, for commands: what they hold, adding one, taking one away.

Headers are read by a decoder's child, as in a server: the files may be strangers'.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.decoder import Decoder
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.errors import InvalidParameter
from mflux_api.gateway.lora_contents import LoraContentsCache
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.storage.loras import LoraFiles
from mflux_api.supervisor import Started
from mflux_api.system.regular_files import open_regular

_UNREAD = DescribedLora()
_TRIES = 3
"""Looks in which no further header was read, after which it is left at that."""
_CHUNK_BYTES = 2**20


def describe_files(files: Sequence[LoraFile]) -> tuple[DescribedLora, ...]:
    """Return what each file holds."""
    return trio.run(_describe, files) if files else ()


def add_file(loras: LoraFiles, file: Path, name: str, *, overwrite: bool, max_bytes: int) -> LoraFile:
    """Copy a file into the first folder of ``lora.dirs``, whole or not at all, once its header was found in order.

    Raises:
        InvalidParameter: it is not a LoRA, cannot be read or is too large, or its name is taken.
        OSError: the folder cannot be written.
    """
    return trio.run(partial(_add, loras, file, name, overwrite=overwrite, max_bytes=max_bytes))


@asynccontextmanager
async def _own_decoder() -> AsyncIterator[Decoding]:
    mailbox: Mailbox[m.DecoderMessage] = Mailbox(m.DECODER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Decoder(mailbox).run, Started())
        yield Decoding(Address(mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH).ask)
        nursery.cancel_scope.cancel()


async def _describe(files: Sequence[LoraFile]) -> tuple[DescribedLora, ...]:
    async with _own_decoder() as decoding:
        cache = LoraContentsCache(decoding.describe_loras)
        described = await cache.describe(files)
        tries = _TRIES
        while _UNREAD in described and tries:
            before, described = described, await cache.describe(files)
            tries = _TRIES if described != before else tries - 1
    return described


async def _add(loras: LoraFiles, file: Path, name: str, *, overwrite: bool, max_bytes: int) -> LoraFile:
    # Nothing else runs in this process that a slow disk could hold up.
    with loras.begin() as upload:
        try:
            with open_regular(file, max_bytes) as opened:
                while chunk := opened.read(_CHUNK_BYTES):
                    upload.write(chunk)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidParameter(f"The LoRA {file} cannot be added: {reason}", {"field": "file"}) from None
        async with _own_decoder() as decoding:
            checked = await decoding.check_lora(upload, "")
        return upload.publish(name, checked, overwrite=overwrite)
