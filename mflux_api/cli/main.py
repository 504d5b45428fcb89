"""The command line: its commands and options, logging, and what each error exits with."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mflux_api.cli import doctor, generate, info, jobs, keys, loras, mcp, models, reload, selftest, serve
from mflux_api.cli.encoding import show_everything
from mflux_api.cli.error_text import describe
from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE
from mflux_api.cli.log_format import set_up_logging
from mflux_api.cli.standard_error import in_background, print_line
from mflux_api.cli.standard_streams import OutputFailed, discard_output, open_standard_streams
from mflux_api.errors import ConfigError, ServiceError, ServiceFailed
from mflux_api.system.nurseries import lone_error

_COMMANDS = {
    "serve": serve.run,
    "generate": generate.run,
    "info": info.run,
    "mcp": mcp.run,
    "models": models.run,
    "loras": loras.run,
    "jobs": jobs.run,
    "keys": keys.run,
    "reload": reload.run,
    "doctor": doctor.run,
    "selftest": selftest.run,
}
_LOG_LEVELS = {"serve": "info", "mcp": "warning"} | dict.fromkeys(
    ("generate", "info", "models", "loras", "jobs", "keys", "reload", "doctor", "selftest"), "error"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    open_standard_streams()
    show_everything()
    options = _parser().parse_args(arguments)
    # A terminal's progress bar and its log are one stream; what a server says must not hold up the server.
    with in_background() if options.command in ("serve", "mcp") else nullcontext():
        set_up_logging(options.log_level or _LOG_LEVELS[options.command])
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        with lone_error():
            status = _COMMANDS[options.command](options)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Who read the output has gone, as `head` does.
        discard_output()
        return EXIT_FAILED
    except OutputFailed as error:
        discard_output()
        print_line(f"mflux-api: {error}")
        return EXIT_FAILED
    except (ConfigError, OSError, ServiceError) as error:
        print_line(f"mflux-api: {describe(error) if isinstance(error, ServiceError) else error}")
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except ServiceFailed as error:
        print_line(f"mflux-api: the service gave up: {error}")
        return EXIT_INTERNAL
    except KeyboardInterrupt:
        print_line("mflux-api: interrupted")
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mflux-api", description="FLUX.2 Klein image generation on MLX.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: ./config.toml if present)")
    shared.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="what to report on standard error"
    )

    serve.add_arguments(commands.add_parser("serve", parents=[shared], help="serve the REST API"))
    generate.add_arguments(
        commands.add_parser("generate", parents=[shared], help="generate an image and print its path")
    )
    info.add_arguments(commands.add_parser("info", parents=[shared], help="say how an image file was made"))
    mcp.add_arguments(
        commands.add_parser("mcp", parents=[shared], help="tools for an assistant (MCP) on standard input and output")
    )
    # Its options belong to the commands below it.
    models.add_arguments(commands.add_parser("models", help="list, download, delete, load and unload models"), shared)
    loras.add_arguments(commands.add_parser("loras", help="list LoRA files, and what is left out"), shared)
    jobs.add_arguments(commands.add_parser("jobs", help="back up the job database, remove old records"), shared)
    keys.add_arguments(commands.add_parser("keys", help="make an API key, list the keys"), shared)
    commands.add_parser(
        "reload", parents=[shared], help="have the running server read its API keys and its log level again"
    )
    commands.add_parser("doctor", parents=[shared], help="say what will be used here, and what is wrong")
    selftest.add_arguments(
        commands.add_parser("selftest", parents=[shared], help="check that generating is right on this machine")
    )
    return parser
