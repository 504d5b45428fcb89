"""The command line's front: what is asked for, mistyped, or not even imported."""

import subprocess
import sys

import pytest

from mflux_api.cli import info, main
from mflux_api.cli.exit_status import EXIT_INTERRUPTED
from mflux_api.version import package_version


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("genrate", "a"), "did you mean 'generate'?"),
        (("models", "lst"), "did you mean 'list'?"),
        (("generate", "a", "--stpes", "4"), "unrecognized arguments: --stpes 4; did you mean '--steps'?"),
        (("generate", "a", "--sed=4"), "unrecognized arguments: --sed=4; did you mean '--seed'?"),
        (("serve", "--log-level", "debgu"), "did you mean 'debug'?"),
        (("doctor", "--frobnicate"), "unrecognized arguments: --frobnicate"),
    ],
)
def test_mistyped_name_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert refused(capsys, *arguments).endswith(says)


def test_option_is_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --wid 64" in refused(capsys, "generate", "a", "--wid", "64")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"mflux-api {package_version()}\n")


def test_help_and_version_import_no_command_and_none_of_its_libraries() -> None:
    code = (
        "import sys; sys.argv = ['mflux-api', '--help']\n"
        "from mflux_api.__main__ import run\n"
        "try: run()\n"
        "except SystemExit as ended: print(ended.code, sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("0 ")
    heavy = ("trio", "msgspec", "quart", "numpy", "psutil", "mflux_api.service", "mflux_api.cli.generate")
    assert [name for name in heavy if f"'{name}'" in done.stderr] == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_interrupt_is_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], wrapped: bool
) -> None:
    def interrupted(_: object) -> int:
        if wrapped:
            raise BaseExceptionGroup("tasks", [KeyboardInterrupt(), ValueError()])
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main.main(["info", "a.png"]) == EXIT_INTERRUPTED
    assert capfd.readouterr().err == "mflux-api: interrupted\n"
