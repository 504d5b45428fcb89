"""The progress bars that huggingface_hub is given: they show nothing, and one of them can end its download."""

import threading
from collections.abc import Iterable
from typing import Any


class SilentBar:
    """A progress bar that shows nothing: progress is counted from the files on disk."""

    total: Any = 0

    def __init__(self, iterable: Iterable[Any] = (), *_: Any, **options: Any) -> None:
        self._iterable = iterable
        self.total = options.get("total")

    def __iter__(self) -> Any:
        return iter(self._iterable)

    def __enter__(self) -> "SilentBar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    update = close = refresh = reset = set_description = set_description_str = set_postfix_str = _ignore


class Stopped(Exception):
    """Another file failed."""


class StoppableBar(SilentBar):
    """A silent bar that ends its download once another file has failed."""

    def __init__(self, stopping: threading.Event, **options: Any) -> None:
        super().__init__(**options)
        self._stopping = stopping

    def update(self, *_: Any, **__: Any) -> None:
        """Go on, or end the download that counts here."""
        if self._stopping.is_set():
            raise Stopped
