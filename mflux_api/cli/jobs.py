"""``mflux-api jobs``: a backup of the job database."""

import argparse
from pathlib import Path

from mflux_api.config import load_settings
from mflux_api.storage.backup import back_up
from mflux_api.storage.sqlite import DATABASE_NAME


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    backup = commands.add_parser(
        "backup", parents=[shared], help="copy the job database to a file, with or without a running server"
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet")


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration or the job database cannot be used, or the file is there already.
        DiskFull: there is no space for the copy.
        OSError: the file cannot be written.
    """
    settings = load_settings(options.config)
    count = back_up(settings.state_dir / DATABASE_NAME, options.file)
    print(f"{options.file}: {count} job(s)")
    return 0
