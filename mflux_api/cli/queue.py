"""``mflux-api queue``: what a running server does, and what waits."""

import argparse

from mflux_api.cli.server_jobs import show_queue
from mflux_api.config import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--url", help="the server (default: the address in the configuration)")


def run(options: argparse.Namespace) -> int:
    """Print it.

    Raises:
        ConfigError: the configuration cannot be used.
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    return show_queue(load_settings(options.config), options.url, as_json=options.json)
