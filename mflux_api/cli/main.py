"""The command line: finding the command, logging, and what each error exits with."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from mflux_api.cli.commands import COMMANDS, build_parser, load
from mflux_api.cli.encoding import show_everything
from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE
from mflux_api.cli.log_format import set_up_logging
from mflux_api.cli.standard_error import in_background, print_line
from mflux_api.cli.standard_streams import OutputFailed, discard_output, open_standard_streams
from mflux_api.errors import ConfigError, ServiceError, ServiceFailed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        open_standard_streams()
        show_everything()
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        command = COMMANDS[options.command]
        # A terminal's progress bar and its log are one stream; what a server says must not hold up the server.
        with in_background() if command.background else nullcontext():
            set_up_logging(options.log_level or command.log_level)
            return _run(options)
    except KeyboardInterrupt:
        print_line("mflux-api: interrupted")
        return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    try:
        from mflux_api.system.nurseries import lone_error

        with lone_error():
            status = int(load(options.command).run(options))
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Who read the output has what it wanted, as `head` does.
        discard_output()
        return 0
    except OutputFailed as error:
        discard_output()
        print_line(f"mflux-api: {error}")
        return EXIT_FAILED
    except ServiceError as error:
        from mflux_api.cli.error_text import describe

        print_line(f"mflux-api: {describe(error)}")
        return EXIT_FAILED
    except (ConfigError, OSError) as error:
        print_line(f"mflux-api: {error}")
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except ServiceFailed as error:
        print_line(f"mflux-api: the service gave up: {error}")
        return EXIT_INTERNAL
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    asked = next((each for each in arguments if not each.startswith("-")), None)
    return build_parser((asked,)).parse_args(arguments)
