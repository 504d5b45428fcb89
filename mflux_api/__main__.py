"""``python -m mflux_api``, and the command that is installed."""

import signal
import sys


def run() -> int:
    """Run the command line; Ctrl-C ends it without a traceback from here on, also while modules are imported."""
    try:
        from mflux_api.cli.main import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("mflux-api: interrupted\n")
        return 130
    finally:
        # What is left is the interpreter's end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(run())
