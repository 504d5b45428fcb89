"""Warnings of a job: sentences about what was asked for and is not done, few and each of them once."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from mflux_api.ipc.printable import sentence

MAX_WARNINGS: Final = 20
"""Warnings of one job, and of what one run may report."""
MAX_OF_REQUEST: Final = 16
"""Warnings of a request, so that there is room for those of its run."""


def merge(*groups: Iterable[str], most: int = MAX_WARNINGS) -> tuple[str, ...]:
    """Return the sentences of all groups in their order, each once; beyond ``most`` the last one counts the others."""
    unique = tuple(dict.fromkeys(sentence(warning) for warning in chain(*groups)))
    if len(unique) <= most:
        return unique
    return (*unique[: most - 1], f"{len(unique) - most + 1} further warnings are left out")
