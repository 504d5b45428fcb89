"""The glossary fails when a name that it mentions is gone from the code."""

import re
import subprocess
import sys

from tests.support.server import ROOT, clean_environment

TEXT = (ROOT / "docs" / "glossary.md").read_text("utf-8")
ENTRIES = re.findall(r"^- \*\*([^*]+)\*\*: (.*?)(?=^- |\Z)", TEXT, re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`(mflux_api(?:\.\w+)+)`")

# In a process of its own: some of these modules import MLX, which must not come before the BLAS of other tests.
RESOLVE = """
import importlib, sys

def resolve(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return

for name in sys.argv[1:]:
    try:
        resolve(name)
    except AttributeError as error:
        print(f"{name}: {error}")
"""


def test_every_name_in_the_glossary_exists() -> None:
    names = NAME.findall(TEXT)
    assert names
    done = subprocess.run(
        [sys.executable, "-P", "-c", RESOLVE, *names],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_glossary_is_alphabetical_and_each_word_has_its_name_in_the_code() -> None:
    words = [word for word, _ in ENTRIES]
    assert words == sorted(set(words))
    assert len(words) == len(re.findall(r"^- \*\*", TEXT, re.MULTILINE))
    assert not [word for word, text in ENTRIES if not NAME.search(text)]
