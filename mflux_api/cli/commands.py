"""The commands and their parsers. A command's module is imported when it is asked for: all take long together."""

from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from mflux_api.cli.parser import Parser, PrintVersion
from mflux_api.system.native_libraries import searching_without_programs


@attrs.frozen
class Command:
    """A command, which is a module of this package with ``add_arguments`` and ``run``."""

    help: str
    log_level: str = "error"
    group: bool = False
    """Whether it has commands of its own, which take the options that all share."""
    background: bool = False
    """Whether what it logs must not hold it up, because it serves others."""


COMMANDS: Mapping[str, Command] = {
    "serve": Command("serve the REST API", log_level="info", background=True),
    "generate": Command("generate images and print their paths"),
    "upscale": Command("make an image larger"),
    "info": Command("say how an image file was made"),
    "mcp": Command("tools for an assistant (MCP) on standard input and output", log_level="warning", background=True),
    "models": Command("list, download, delete, load and unload models", group=True),
    "loras": Command("list, add and remove LoRA files", group=True),
    "jobs": Command("list, watch and cancel jobs, back up their database", group=True),
    "queue": Command("say what a server does, and what waits"),
    "keys": Command("make an API key, list the keys", group=True),
    "reload": Command("have the running server read its API keys and its log level again"),
    "doctor": Command("say what will be used here, and what is wrong"),
    "selftest": Command("check that generating is right on this machine"),
    "completion": Command("print a script that has a shell complete all this"),
}


def build_parser(described: Container[str | None] | None = None) -> Parser:
    """Return the parser of the command line.

    Args:
        described: the commands whose modules are imported for their own options; by default all of them.
    """
    parser = Parser(prog="mflux-api", description="FLUX.2 Klein image generation on MLX.")
    parser.add_argument("--version", action=PrintVersion, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = Parser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: ./config.toml if present)")
    shared.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="what to report on standard error"
    )
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, parents=[] if command.group else [shared], help=command.help)
        if described is None or name in described:
            # The shared options of a group belong to the commands below it.
            load(name).add_arguments(added, *((shared,) if command.group else ()))
    return parser


def load(name: str) -> Any:
    """Return the module of a command."""
    # Trio searches for libpthread when it is first imported, and most commands import it.
    with searching_without_programs():
        return import_module(f"mflux_api.cli.{name}")
