"""Nurseries and their exception groups, where one failure matters and a group around it would be in the way."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

import trio

logger = logging.getLogger(__name__)


@asynccontextmanager
async def unwrapped_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that raises its first failure as it is, and not in a group.

    For blocks where one thing fails and everything else ends because of it: what else failed is logged only.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failure = first_failure(group)
        if not isinstance(failure, Exception) or group.split((Exception, trio.Cancelled))[1] is not None:
            # A cancellation or an interrupt passes through as it came, whatever failed beside it.
            raise
        if len(group.exceptions) > 1:
            logger.debug("more than one task failed", exc_info=group)
        _raise_as_it_was(failure)


@contextmanager
def lone_error() -> Iterator[None]:
    """Turn a group that holds one error, however deep, into that error; several stay a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        _raise_as_it_was(error)


def _raise_as_it_was(error: BaseException) -> NoReturn:
    """Raise an error without the group that carried it in its context."""
    cause, context = error.__cause__, error.__context__
    try:
        raise error
    finally:
        error.__cause__, error.__context__ = cause, context


def first_failure(error: BaseException) -> BaseException:
    """Return the first failure in a group, or what cancelled it where nothing failed."""
    while isinstance(error, BaseExceptionGroup):
        failures = error.split(trio.Cancelled)[1]
        error = (failures or error).exceptions[0]
    return error
