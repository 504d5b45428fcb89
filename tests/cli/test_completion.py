"""What a shell completes, in a real bash."""

import shlex
import subprocess

import pytest

from mflux_api.cli.commands import COMMANDS
from mflux_api.cli.completion import SHELLS, script


@pytest.fixture(scope="module")
def completed() -> dict[str, list[str]]:
    """What follows each of some lines at Tab."""
    lines = (
        "mflux-api ge",
        "mflux-api ",
        "mflux-api models l",
        "mflux-api generate --se",
        "mflux-api generate 'a lake' --model demo",
        "mflux-api serve --log-level d",
        "mflux-api jobs list --status c",
        "mflux-api models load flux2-klein-9b-4",
        "mflux-api keys new ana --scopes m",
    )
    tab = 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _mflux_api; echo "${COMPREPLY[@]}"'
    # After a space a new word begins, which is empty.
    words = [f'{line}""' if line.endswith(" ") else line for line in lines]
    asked = "\n".join(f"COMP_WORDS=({line}); {tab}" for line in words)
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script('bash')}\n{asked}"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return dict(zip(lines, (line.split() for line in done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mflux-api ge", ["generate"]),
        ("mflux-api models l", ["list", "load"]),
        ("mflux-api generate --se", ["--seed"]),
        ("mflux-api generate 'a lake' --model demo", ["demo", "demo-base"]),
        ("mflux-api serve --log-level d", ["debug"]),
        ("mflux-api jobs list --status c", ["completed", "cancelled"]),
        ("mflux-api models load flux2-klein-9b-4", ["flux2-klein-9b-4-bit"]),
        ("mflux-api keys new ana --scopes m", ["manage"]),
    ],
)
def test_bash_completes_commands_options_and_values(
    completed: dict[str, list[str]], line: str, expected: list[str]
) -> None:
    assert completed[line] == expected


def test_every_command_is_completed(completed: dict[str, list[str]]) -> None:
    assert completed["mflux-api "] == list(COMMANDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_every_command_and_is_whole(shell: str) -> None:
    text = script(shell)
    assert all(name in text for name in COMMANDS)
    if shell == "fish":
        # Quoting: each line is words of a shell.
        assert all(shlex.split(line)[:3] == ["complete", "-c", "mflux-api"] for line in text.splitlines())
