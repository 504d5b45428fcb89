"""The command line: its commands and options, logging, and what each error exits with.

A command's module is imported when that command is asked for: all of them together take eight times as long.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from mflux_api.cli.encoding import show_everything
from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE
from mflux_api.cli.log_format import set_up_logging
from mflux_api.cli.parser import Parser, PrintVersion
from mflux_api.cli.standard_error import in_background, print_line
from mflux_api.cli.standard_streams import OutputFailed, discard_output, open_standard_streams
from mflux_api.errors import ConfigError, ServiceError, ServiceFailed
from mflux_api.system.native_libraries import searching_without_programs


@attrs.frozen
class _Command:
    """A command, which is a module of this package with ``add_arguments`` and ``run``."""

    help: str
    log_level: str = "error"
    group: bool = False
    """Whether it has commands of its own, which take the options that all share."""
    background: bool = False
    """Whether what it logs must not hold it up, because it serves others."""


_COMMANDS: Mapping[str, _Command] = {
    "serve": _Command("serve the REST API", log_level="info", background=True),
    "generate": _Command("generate images and print their paths"),
    "upscale": _Command("make an image larger"),
    "info": _Command("say how an image file was made"),
    "mcp": _Command("tools for an assistant (MCP) on standard input and output", log_level="warning", background=True),
    "models": _Command("list, download, delete, load and unload models", group=True),
    "loras": _Command("list, add and remove LoRA files", group=True),
    "jobs": _Command("list, watch and cancel jobs, back up their database", group=True),
    "queue": _Command("say what a server does, and what waits"),
    "keys": _Command("make an API key, list the keys", group=True),
    "doctor": _Command("say what will be used here, and what is wrong"),
    "selftest": _Command("check that generating is right on this machine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        open_standard_streams()
        show_everything()
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        command = _COMMANDS[options.command]
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
            status = int(_module(options.command).run(options))
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
    parser = Parser(prog="mflux-api", description="FLUX.2 Klein image generation on MLX.")
    parser.add_argument("--version", action=PrintVersion, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = Parser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: ./config.toml if present)")
    shared.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="what to report on standard error"
    )
    asked = next((each for each in arguments if not each.startswith("-")), None)
    for name, command in _COMMANDS.items():
        added = commands.add_parser(name, parents=[] if command.group else [shared], help=command.help)
        if name == asked:
            # The shared options of a group belong to the commands below it.
            _module(name).add_arguments(added, *((shared,) if command.group else ()))
    return parser.parse_args(arguments)


def _module(name: str) -> Any:
    # Trio searches for libpthread when it is first imported, and most commands import it.
    with searching_without_programs():
        return import_module(f"mflux_api.cli.{name}")
