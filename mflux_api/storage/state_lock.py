"""One service per state directory."""

import contextlib
import fcntl
import os
import re
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import attrs

from mflux_api.config import Settings
from mflux_api.errors import ConfigError
from mflux_api.system.durable import NOT_SUPPORTED, make_folder
from mflux_api.system.private_files import make_private_folder, open_private

LOCK_NAME = "mflux-api.lock"
_RELOADS = "reloads"


class StateInUse(ConfigError):
    """Another process holds the state directory."""

    code: ClassVar[str] = "STATE_IN_USE"


class StateLock:
    """Holds a state directory from construction until :meth:`close` or the end of the process, however it ends.

    The file itself stays: removing it would let two processes lock two files of the same name.

    Args:
        state_dir: the directory; it is made if need be.
        private: whether it holds nothing that is for others, so that only its owner may enter it.

    Raises:
        StateInUse: another process, or another lock of this one, holds it.
        ConfigError: the directory cannot be created or written.
    """

    def __init__(self, state_dir: Path, *, private: bool = False) -> None:
        self._file: int | None = None
        try:
            if private and _holds_only_state(state_dir):
                make_private_folder(state_dir)
            else:
                make_folder(state_dir)
            # Python's descriptors are closed in child processes, so the engine never keeps the lock of a dead server.
            file = open_private(state_dir / LOCK_NAME)
        except OSError as error:
            raise _unusable(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(file)
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise _in_use(holder) from error
            raise (_without_locks(error) if error.errno in NOT_SUPPORTED else _unusable(error)) from error
        self._file = file
        _write_holder(file)

    @classmethod
    def from_settings(cls, settings: Settings) -> "StateLock":
        """Hold the configured directory, which only its owner may enter unless it also holds images.

        Raises:
            StateInUse: another process, or another lock of this one, holds it.
            ConfigError: the directory cannot be created or written.
        """
        images = settings.generation.output_dir
        return cls(settings.state_dir, private=not images.is_relative_to(settings.state_dir))

    def __enter__(self) -> "StateLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def say_reloads(self) -> None:
        """Write down that this process takes SIGUSR1 for a reload; it would end any other."""
        if self._file is not None:
            _write_holder(self._file, _RELOADS)

    def close(self) -> None:
        """Release the directory; calling it again does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _holds_only_state(folder: Path) -> bool:
    """Whether a folder, if there is one, has nothing in it but what a service keeps there: it may be a user's home."""
    names = os.listdir(folder) if folder.is_dir() else []
    return all(name == "inputs" or name.lstrip(".").startswith("mflux-api.") for name in names)


@attrs.frozen(kw_only=True)
class Holder:
    """Who holds a state directory, as it wrote itself."""

    process: int
    reloads: bool
    """Whether it takes SIGUSR1 for a reload."""


def find_holder(state_dir: Path) -> Holder | None:
    """Return who holds a state directory; ``None`` where no process does, or it did not say who it is."""
    try:
        file = os.open(state_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # Shared: two that look do not take each other for a server.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse_holder(file)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _write_holder(file: int, *more: str) -> None:
    # A full disk must not keep the service from starting.
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, "\n".join([str(os.getpid()), *more, ""]).encode(), 0)


def _parse_holder(file: int) -> Holder | None:
    with contextlib.suppress(OSError):
        process, *more = os.pread(file, 64, 0).decode("ascii", "replace").split("\n")
        if re.fullmatch("[1-9][0-9]{0,9}", process):
            return Holder(process=int(process), reloads=_RELOADS in more)
    return None


def _read_holder(file: int) -> str:
    holder = _parse_holder(file)
    return "" if holder is None else f", process {holder.process}"


def _in_use(holder: str) -> StateInUse:
    return StateInUse(
        f"STATE_IN_USE: another service uses this state directory ({LOCK_NAME}{holder}); stop it or set jobs.state_dir"
    )


def _without_locks(error: OSError) -> ConfigError:
    return ConfigError(
        f"{LOCK_NAME}: the state directory is on a file system without locks ({error.strerror}), which keep two "
        "services apart; set jobs.state_dir to a folder on a local disk (generation.output_dir may stay)"
    )


def _unusable(error: OSError) -> ConfigError:
    return ConfigError(
        f"{LOCK_NAME}: the state directory cannot be used: {error.strerror or type(error).__name__}; "
        "make it writable or set jobs.state_dir to another folder"
    )
