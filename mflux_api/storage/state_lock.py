"""One service per state directory."""

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from mflux_api.config import Settings
from mflux_api.errors import ConfigError
from mflux_api.system.durable import NOT_SUPPORTED, make_folder
from mflux_api.system.private_files import make_private_folder, open_private

LOCK_NAME = "mflux-api.lock"


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

    def close(self) -> None:
        """Release the directory; calling it again does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _holds_only_state(folder: Path) -> bool:
    """Whether a folder, if there is one, has nothing in it but what a service keeps there: it may be a user's home."""
    names = os.listdir(folder) if folder.is_dir() else []
    return all(name == "inputs" or name.lstrip(".").startswith("mflux-api.") for name in names)


def _write_holder(file: int) -> None:
    # For people only: a full disk must not keep the service from starting.
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)


def _read_holder(file: int) -> str:
    with contextlib.suppress(OSError):
        written = os.pread(file, 32, 0).strip()
        if written.isdigit():
            return f", process {written.decode()}"
    return ""


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
