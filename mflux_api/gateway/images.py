"""The images of jobs as bytes, read from the disk in threads."""

import errno
import os
import stat
from binascii import b2a_base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from mflux_api.errors import ImageGone, InternalError
from mflux_api.gateway.questions import Questions
from mflux_api.images.encode import ImageTarget, read_png_as_base64
from mflux_api.jobs.job import StoredImage

T = TypeVar("T")


class Images(Questions):
    """Reading finished images."""

    async def image_bytes(self, image: StoredImage) -> bytes:
        """Read a finished image's PNG file.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        return await self._read(partial(_file_bytes, Path(image.path)))

    async def image_size(self, image: StoredImage) -> int:
        """Return the size of a finished image's PNG file.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        return await self._read(partial(_file_size, Path(image.path)))

    async def image_base64(self, image: StoredImage, size: int) -> bytearray:
        """Read a finished image's PNG file of a known size as base64.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read, or is damaged.
        """
        return await self._read(partial(read_png_as_base64, Path(image.path), size))

    async def _read(self, read: Callable[[], T]) -> T:
        try:
            return await self.read_images(read)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageGone("The image's file was removed from the output directory") from None
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    async def image_as(self, image: StoredImage, target: ImageTarget, *, caller: str = "") -> bytes:
        """Read a finished image in another format or size.

        Args:
            image: the image.
            target: what it is made into.
            caller: on whose behalf: callers take turns.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        if target.as_stored:
            return await self.image_bytes(image)
        # The file may have been removed: what is kept of it goes then, too.
        await self.image_size(image)

        async def make() -> bytes:
            return await self.decoding.convert_image(await self.image_bytes(image), target, caller)

        return await self.conversions.get(image.sha256, target, make, caller=caller)

    async def image_as_base64(self, image: StoredImage, target: ImageTarget, *, caller: str = "") -> bytearray:
        """Read a finished image in another format or size as base64; see :meth:`image_as`.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        data = await self.image_as(image, target, caller=caller)
        # In a thread: megabytes take a while.
        return await self._read(lambda: bytearray(b2a_base64(data, newline=False)))


def _file_size(path: Path) -> int:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        # Reading a pipe would wait for its other end.
        raise OSError(errno.EINVAL, "Not a regular file")
    return status.st_size


def _file_bytes(path: Path) -> bytes:
    _file_size(path)
    return path.read_bytes()


def _unreadable(error: OSError | ValueError) -> InternalError:
    return InternalError(
        "The image's file cannot be read; check that the server may read generation.output_dir",
        {"reason": getattr(error, "strerror", None) or "the file is damaged"},
    )
