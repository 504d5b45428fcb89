"""What a dying child printed, as a clause that any client may read."""

import pytest

from mflux_api.ipc.last_words import LastWords, without_paths

TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3.12/runpy.py", line 198, in _run_module_as_main
    import mlx.core as mx
ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"""


def words(text: str, *, private: bool = False, killed: bool = False) -> str:
    heard = LastWords()
    for line in text.split("\n"):
        heard.note(line)
    return heard.quote(private=private, killed=killed)


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        (TRACEBACK, "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"),
        (f"{TRACEBACK}\nmore advice\nof a library\n", "ImportError: libcuda.so.1: cannot open shared object file"),
        (
            "Traceback (most recent call last):\nImportError:\n\nOriginal error was: no file",
            "Original error was",
        ),
        ("terminate called after throwing\n  what():  [cuda] no device\n", "what():  [cuda] no device"),
        ("config.json: not found", "config.json: not found"),
        ("thread 'main' panicked at a.rs:\nno room\nnote: run with `RUST_BACKTRACE=1`", "no room"),
        ("\n\n   \n", ""),
    ],
)
def test_line_that_says_most_is_quoted(printed: str, says: str) -> None:
    assert words(printed).startswith(says)
    assert bool(words(printed)) == bool(says)


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("denied: '/home/a user/x/model.py'", "denied: 'model.py'"),
        ("/root/.venv/lib/mlx/core.so: undefined symbol: _ZN", "core.so: undefined symbol: _ZN"),
        ("dlopen(/a/b/c.so, 0x2): tried: '/a/b c/d.so' (gone)", "dlopen(c.so, 0x2): tried: 'd.so' (gone)"),
        ("see https://host/a?token=1 and file:///etc/secret", "see https:… and file:…"),
        ("the token hf_abcDEF012 is wrong", "the token … is wrong"),
        ("at ~/models/x, 3/4 done, n/a", "at x, 3/4 done, n/a"),
    ],
)
def test_paths_addresses_and_tokens_are_not_quoted(line: str, quoted: str) -> None:
    assert without_paths(line) == quoted


def test_what_is_quoted_is_bounded_and_printable() -> None:
    quoted = words("x\x1b[31m\u202e" * 500)
    assert len(quoted) <= 200
    assert quoted.isprintable()


METAL = "libc++abi: terminating due to uncaught exception: [METAL] Insufficient Memory"


@pytest.mark.parametrize(
    ("printed", "quoted"),
    [
        ("Traceback (most recent call last):\n  File\nValueError: cannot tokenize 'a secret garden'", "ValueError"),
        ("Traceback (most recent call last):\n  File\na secret garden", ""),
        ("a secret garden", ""),
        (METAL, METAL),
        ("Fatal Python error: Aborted\n\nThread 0x01", "Fatal Python error: Aborted"),
    ],
)
def test_of_a_child_that_saw_prompts_only_kinds_and_its_runtimes_words_are_quoted(printed: str, quoted: str) -> None:
    assert words(printed, private=True) == quoted


@pytest.mark.parametrize("printed", [TRACEBACK, "[transformers] PyTorch was not found.", "loading"])
def test_what_was_printed_before_a_kill_is_not_its_reason(printed: str) -> None:
    assert words(printed, killed=True) == ""
    assert words(f"{printed}\n{METAL}", killed=True) == METAL


def test_what_every_engine_prints_is_no_reason() -> None:
    assert words("[transformers] PyTorch was not found.") == ""
