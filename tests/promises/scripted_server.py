"""``mflux-api serve`` over scripted engines: everything but the model is real. Run as a module, never by hand."""

import json
import os
import sys
import time
from functools import partial

from mflux_api import cli
from mflux_api.service import open_service
from tests.scripted_engine import Script

MODULE = "tests.promises.scripted_server"
OPTIONS = "SCRIPTED_SERVER"
"""Environment variable with the fields of the :class:`Script` as JSON."""


def environ(**fields: float | bool) -> dict[str, str]:
    """Return what a server's environment must hold to run that script; ``stuck_drain`` blocks the loop at the end."""
    return {OPTIONS: json.dumps(fields)}


async def _stuck(*_: object) -> None:
    """A defect: the event loop does not go on."""
    time.sleep(3600)  # noqa: ASYNC251


def main() -> int:
    """Run the command line with every engine replaced."""
    options = json.loads(os.environ.get(OPTIONS, "{}"))
    if options.pop("stuck_drain", False):
        vars(cli)["_drain"] = _stuck
    script = Script(**options)
    vars(cli)["open_service"] = partial(open_service, start_engine=script.start)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
