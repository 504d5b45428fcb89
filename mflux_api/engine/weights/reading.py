"""Reports of how far the reading of a checkpoint is."""

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[str, int, int], None]
"""Told what is read, how many bytes are done, and of how many; what it raises stops the reading."""


def no_report(component: str, done: int, total: int) -> None:
    """Report to no one."""
