"""``mflux-api reload``: have the running server read its API keys and its log level again, by SIGUSR1."""

import argparse
import os
import signal

import psutil

from mflux_api.access.keys_file import read_keys
from mflux_api.config import load_settings
from mflux_api.storage.state_lock import LOCK_NAME, find_holder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options: it has none."""


def run(options: argparse.Namespace) -> int:
    """Check the configuration, and send the signal.

    Raises:
        ConfigError: the configuration cannot be used; the server would keep what it has.
        ConnectionError: no server runs on the configured state directory, or it cannot be reached from here.
    """
    settings = load_settings(options.config)
    # The server says what is wrong in its log; here it is said to who made the mistake.
    read_keys(settings.security)
    holder = find_holder(settings.state_dir)
    if holder is None:
        raise ConnectionError(
            "no server runs on this state directory (jobs.state_dir); give the server's own --config, or start one"
        )
    if not holder.reloads:
        raise ConnectionError(
            f"process {holder.process} holds {LOCK_NAME} and is not a server that reloads; wait for its end"
        )
    if not _has_open(holder.process, settings.state_dir / LOCK_NAME):
        # It is a number of another container, or of another user's process.
        raise ConnectionError(
            f"the server (process {holder.process}) cannot be reached from here; run this in its container, as its user"
        )
    os.kill(holder.process, signal.SIGUSR1)
    print(f"told the server (process {holder.process}); its log says how many API keys it has now")
    return 0


def _has_open(process: int, lock: os.PathLike[str]) -> bool:
    """Whether a process of this user has that very file open."""
    wanted = os.stat(lock)
    try:
        opened = psutil.Process(process).open_files()
    except psutil.Error:
        return False
    for each in opened:
        try:
            found = os.stat(each.path)
        except OSError:
            continue
        if os.path.samestat(wanted, found):
            return True
    return False
