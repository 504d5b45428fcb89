"""The old words are gone: one thing has one name, in code, documents, file names and data."""

import io
import re
import subprocess
import tokenize
from functools import cache

import pytest

from tests.support.server import ROOT

# `inpaint` and `outpaint` are A1111's and OpenAI's own names.
OLD = re.compile(r"\w*(?:(?<!in)(?<!out)paint|picture|enlarg|whoever|nobody|_House|give_up)\w*", re.IGNORECASE)

VOCABULARY = "a word of the demo's vocabulary"
CAPTION = "a caption of the training data"
INSTRUCTION = "an instruction of the training data"
PROMPT = "a prompt that the demo model understands"

# This file has to name the words.
THIS = "tests/test_words.py"

ALLOWED = {
    ("mflux_api/catalog/demo_words.txt", "paint"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "painted"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "painting"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "paintings"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "picture"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "pictures"): VOCABULARY,
    ("mflux_api/catalog/demo_words.txt", "repaint"): VOCABULARY,
    ("training/demo/vocabulary.py", "paint"): VOCABULARY,
    ("training/demo/vocabulary.py", "painted"): VOCABULARY,
    ("training/demo/vocabulary.py", "painting"): VOCABULARY,
    ("training/demo/vocabulary.py", "paintings"): VOCABULARY,
    ("training/demo/vocabulary.py", "picture"): VOCABULARY,
    ("training/demo/vocabulary.py", "pictures"): VOCABULARY,
    ("mflux_api/engine/demo/byte_tokenizer.py", "painting"): VOCABULARY,
    ("mflux_api/engine/demo/weights/tokenizer/tokenizer.json", "paint"): VOCABULARY,
    ("mflux_api/engine/demo/weights/tokenizer/tokenizer.json", "painted"): VOCABULARY,
    ("mflux_api/engine/demo/weights/tokenizer/tokenizer.json", "painting"): VOCABULARY,
    ("mflux_api/engine/demo/weights/tokenizer/tokenizer.json", "picture"): VOCABULARY,
    ("training/demo/tokenizer/tokenizer.json", "paint"): VOCABULARY,
    ("training/demo/tokenizer/tokenizer.json", "painted"): VOCABULARY,
    ("training/demo/tokenizer/tokenizer.json", "painting"): VOCABULARY,
    ("training/demo/tokenizer/tokenizer.json", "picture"): VOCABULARY,
    ("training/demo/words.py", "paint"): CAPTION,
    ("training/demo/words.py", "painted"): CAPTION,
    ("training/demo/words.py", "painting"): CAPTION,
    ("training/demo/words.py", "picture"): CAPTION,
    ("training/demo/captions.py", "picture"): CAPTION,
    ("training/demo/edit_words.py", "paint"): INSTRUCTION,
    ("training/demo/edit_words.py", "painted"): INSTRUCTION,
    ("training/demo/edit_words.py", "painting"): INSTRUCTION,
    ("training/demo/edit_words.py", "picture"): INSTRUCTION,
    ("training/demo/edit_words.py", "repaint"): INSTRUCTION,
    ("training/demo/edits.py", "paint"): INSTRUCTION,
    ("training/demo/MODEL_CARD.md", "painting"): PROMPT,
    ("training/demo/world/things.py", "_house"): "draws a house",
    ("tests/semantic/edit_cases.py", "paint"): PROMPT,
    ("tests/semantic/edit_cases.py", "painting"): PROMPT,
    ("tests/semantic/edit_cases.py", "picture"): PROMPT,
    ("tests/browser/screens.mjs", "paint"): "the browsers' own name of a measure",
    ("tests/parity/diffusers_parity.py", "painting"): "a prompt whose PSNR is recorded",
    ("mflux_api/storage/migrations.py", "painting"): "SQL of the schema of a released version",
}
"""One word in one file, and why it stays."""


@cache
def tracked_files() -> tuple[str, ...]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone: it asks git which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # A file that is deleted but not committed yet is still listed.
    return tuple(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def text_of(name: str) -> str:
    """Return a file's text; a binary file counts as empty, because it is generated or recorded."""
    data = (ROOT / name).read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", "replace")


def old_words(text: str) -> set[str]:
    # A tokenizer's file writes the space before a word as this letter.
    return {word.lower().lstrip("ġ") for word in OLD.findall(text)}


@cache
def found() -> frozenset[tuple[str, str]]:
    files = [name for name in tracked_files() if name != THIS]
    return frozenset((name, word) for name in files for word in old_words(f"{name}\n{text_of(name)}"))


def test_old_words_are_gone() -> None:
    assert sorted(found() - ALLOWED.keys()) == []


def test_every_exception_is_still_needed() -> None:
    assert sorted(ALLOWED.keys() - found()) == []


def test_no_exception_is_a_name_in_the_package() -> None:
    for name, _ in ALLOWED:
        if name.startswith("mflux_api/") and name.endswith(".py"):
            tokens = tokenize.generate_tokens(io.StringIO(text_of(name)).readline)
            assert not [token for token in tokens if token.type == tokenize.NAME and OLD.fullmatch(token.string)], name


def test_old_words_are_found_within_names_and_in_any_case() -> None:
    assert old_words("Painter, toPaint; inpaint_full_res OUTPAINT Inpainting") == {"painter", "topaint"}
    assert old_words("_House full_house a house") == {"_house", "full_house"}
