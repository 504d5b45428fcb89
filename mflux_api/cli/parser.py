"""The parser of options: nothing is abbreviated, and what was mistyped is answered with what was meant."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Python's, whose subparsers are like itself; a new option must not change what an old abbreviation means."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and refuse here what is not known: only the parser of the command itself knows what was meant."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._guess(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with the name that is meant where one of the choices is close."""
        _, _, asked = message.partition("invalid choice: ")
        word, found, choices = asked.partition("choose from ")
        if found:
            message += did_you_mean(word.split("'")[1], re.findall(r"[\w.-]+", choices))
        super().error(message)

    def _guess(self, unknown: Sequence[str]) -> str:
        options = [name for name in self._option_string_actions if name.startswith("--")]
        guesses = (did_you_mean(each.partition("=")[0], options) for each in unknown if each.startswith("--"))
        return next((guess for guess in guesses if guess), "")


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """Return the end of a sentence that names the closest of some names, empty where none is close."""
    close = get_close_matches(word.lower(), names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class PrintVersion(argparse.Action):
    """``--version``; looking it up costs a tenth of a start, so only who asks for it pays."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it and end."""
        from mflux_api.version import package_version

        print(f"mflux-api {package_version()}")
        parser.exit(0)
