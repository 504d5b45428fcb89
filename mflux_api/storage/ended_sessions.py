"""Sessions that were ended before their time, on disk, so that copies of their cookies never count again."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from mflux_api.system.durable import make_folder
from mflux_api.system.private_files import write_private

NAME: Final = "mflux-api.ended-sessions"
MOST_PER_KEY: Final = 1000
"""A key that ends more within a session's life revives its own oldest, and those of no other key."""

_LINE: Final = re.compile(r"([0-9]{1,12}) ([0-9a-f]{8}) ([A-Za-z0-9_-]{1,32})", re.ASCII)

logger = logging.getLogger(__name__)


@attrs.frozen
class Session:
    """A session, without what makes its cookie count."""

    expires: int
    """When it ends by itself, in seconds since the epoch."""
    tag: str
    """Whose key it stands for."""
    id: str


class EndedSessions:
    """Those that were ended and would still count by their time."""

    def __init__(self, ended: list[Session] | None = None, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_key: dict[str, deque[Session]] = {}
        for session in ended or []:
            self._note(session)

    def __contains__(self, session: Session) -> bool:
        return session in self._by_key.get(session.tag, ())

    def add(self, session: Session) -> None:
        """Note one; those that have ended by their time, too, are forgotten."""
        for tag in list(self._by_key):
            left = [each for each in self._by_key.pop(tag) if each.expires > self._clock()]
            if left:
                self._by_key[tag] = deque(left, MOST_PER_KEY)
        self._note(session)

    def _note(self, session: Session) -> None:
        if session.expires > self._clock():
            self._by_key.setdefault(session.tag, deque(maxlen=MOST_PER_KEY)).append(session)

    def lines(self) -> bytes:
        """Return what a file keeps of them."""
        every = (session for ended in self._by_key.values() for session in ended)
        return "".join(f"{each.expires} {each.tag} {each.id}\n" for each in every).encode()


def read_ended(folder: Path) -> EndedSessions:
    """Return those that a folder keeps. Call it in a thread."""
    path = folder / NAME
    try:
        text = path.read_text("ascii", "replace") if path.exists() else ""
    except OSError as error:
        logger.warning("sessions that were ended may count again: %s cannot be read (%s)", NAME, error.strerror)
        text = ""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return EndedSessions([Session(int(line[1]), line[2], line[3]) for line in found if line is not None])


def write_ended(folder: Path, lines: bytes) -> None:
    """Have a folder keep them. Call it in a thread."""
    try:
        make_folder(folder)
        write_private(folder / NAME, lines)
    except OSError as error:
        logger.warning("sessions that were ended count again after a restart: %s (%s)", NAME, error.strerror)
