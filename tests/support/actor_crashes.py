"""A defect in an actor on demand, and a caller that meets it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mflux_api.errors import ServiceRestarting


@contextmanager
def crash(owner: type[Any], method: str) -> Iterator[None]:
    """The method raises at its next call, once."""
    real = getattr(owner, method)

    def raising(*_: object, **__: object) -> None:
        setattr(owner, method, real)
        raise ZeroDivisionError("injected")

    setattr(owner, method, raising)
    try:
        yield
    finally:
        setattr(owner, method, real)


async def provoke(question: Any) -> None:
    """Ask until the crash is met."""
    while True:
        try:
            await question()
        except ServiceRestarting:
            return
