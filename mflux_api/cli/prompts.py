"""The prompts of one command: of its arguments, of a file, or of standard input, one a line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mflux_api.cli.encoding import decode_argument
from mflux_api.errors import ConfigError
from mflux_api.system.regular_files import FileTooLarge, read_regular

MAX_PROMPTS = 1000
_MAX_BYTES = 10 * 2**20
STDIN = "-"


def read_prompts(arguments: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return the prompts in order: those of the arguments, then those of the file; one that is empty if there are none.

    Args:
        arguments: prompts, and ``-`` for the lines of standard input.
        file: a file with a prompt in each line; ``-`` is standard input.

    Raises:
        ConfigError: the file cannot be read, or there are too many.
    """
    sources = [*arguments, *([] if file is None else [None])]
    prompts = list[str]()
    for source in sources:
        if source == STDIN or (source is None and str(file) == STDIN):
            prompts += _lines(_standard_input(), "standard input")
        elif source is None and file is not None:
            prompts += _lines(_content(file), str(file))
        elif source is not None:
            prompts.append(decode_argument(source).strip())
    if len(prompts) > MAX_PROMPTS:
        raise ConfigError(f"there are {len(prompts)} prompts, and {MAX_PROMPTS} are the most; split them up")
    return tuple(prompts) or ("",)


def _lines(data: bytes, where: str) -> list[str]:
    try:
        # Editors on Windows write a byte order mark.
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8 text; expected a prompt in each line") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{where}: there is no prompt in it; expected one in each line")
    return prompts


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"standard input: more than {_MAX_BYTES // 2**20} MB are not prompts")
    return data


def _content(file: Path) -> bytes:
    try:
        return read_regular(file.expanduser(), _MAX_BYTES)
    except FileTooLarge:
        raise ConfigError(f"{file}: more than {_MAX_BYTES // 2**20} MB are not prompts") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{file}: cannot be read: {reason}") from None
