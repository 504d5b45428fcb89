"""A home for a child whose user has none: libraries keep caches there, and some cannot be imported without one."""

import os
import sys
from pathlib import Path

from mflux_api.system.private_files import make_private_folder

FOLDER = "mflux-api.home"
"""Its name in the state directory."""
VARIABLE = "MFLUX_API_CHILD_HOME"
"""What tells a child where it would be."""


def take_home() -> None:
    """Give this process the home that its parent named, unless its user has one that can be written.

    Where the folder cannot be made, HOME still names it: what only wants a name is content, and caches do without.
    """
    # A relative one is to be ignored (XDG Base Directory Specification), and not every library does.
    for name in [name for name, value in os.environ.items() if name.startswith("XDG_") and name.endswith("_HOME")]:
        if not os.path.isabs(os.environ[name]):
            del os.environ[name]
    if not os.environ.get("HOME"):
        # Of a user with an entry the system knows the home.
        os.environ.pop("HOME", None)
    offered = os.environ.pop(VARIABLE, None)
    if offered is None or has_home():
        return
    try:
        make_private_folder(Path(offered))
    except OSError as error:
        print(f"no home: {error.strerror}", file=sys.stderr)  # noqa: T201 - the parent's debug log
    os.environ["HOME"] = offered


def has_home() -> bool:
    """Whether this process's user has a home that can be written."""
    home = os.path.expanduser("~")
    return os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)
