"""``mflux-api keys``: make a key for someone, and list who has one; a running server hears of it by SIGUSR1."""

import argparse
import sys

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry, new_secret, read_file
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    new = commands.add_parser("new", parents=[shared], help="print a new key, once, and add it to security.keys_file")
    new.add_argument("name", metavar="NAME", help="of who or what will use it; its jobs belong to this name")
    new.add_argument(
        "--scopes",
        nargs="+",
        choices=[scope.value for scope in Scope],
        default=[Scope.GENERATE.value],
        help="what it may do (default: generate)",
    )
    new.add_argument("--max-jobs", type=_count, metavar="N", help="how many of its jobs may wait in the queue")
    commands.add_parser("list", parents=[shared], help="list names, scopes and limits")


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration or the file of keys cannot be used, or the name is taken.
        OSError: the file cannot be written.
    """
    settings = load_settings(options.config)
    if options.action == "new":
        _new(settings, options)
    else:
        _list(settings)
    return 0


def _new(settings: Settings, options: argparse.Namespace) -> None:
    secret, path = new_secret(), settings.security.keys_file
    entry = new_entry(options.name, secret, [Scope(scope) for scope in options.scopes], options.max_jobs)
    if path is None:
        # The secret alone goes to standard output, so that a program can take it.
        note = f"set security.keys_file, and put this into the file (chmod 600):\n\n{entry}"
    else:
        append(path, entry)
        note = (
            f"added to {path.name}; run `mflux-api reload` where a server runs. This is the only time that the key is "
            "shown:\n"
        )
    print(note, file=sys.stderr, flush=True)
    print(secret)


def _list(settings: Settings) -> None:
    path = settings.security.keys_file
    if path is None:
        raise ConfigError("security.keys_file is not set; keys of security.api_keys have no names")
    for key in read_file(path):
        limit = "" if key.max_jobs is None else f"  at most {key.max_jobs} waiting job(s)"
        print(f"{key.name}  {', '.join(sorted(key.scopes))}{limit}")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is not a number of jobs; expected 1 or more")
    return int(text)
