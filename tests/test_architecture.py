"""docs/architecture.md describes this house: its files, its functions, and a table that fits in a glance."""

import re
from pathlib import Path

import pytest

from tests.support.server import ROOT
from tools.file_index import update_index

TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGE = ROOT / "mflux_api"
TABLE = re.search(r"\| Place \|.*?\n\n", TEXT, re.DOTALL)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))


def test_index_of_files_is_made_from_their_first_lines() -> None:
    assert update_index(TEXT) == TEXT, "run: uv run --group dev python -m tools.file_index"


def test_table_of_places_fits_in_a_glance() -> None:
    assert TABLE is not None
    rows = TABLE.group().strip().splitlines()[2:]
    assert 5 < len(rows) <= 15
    assert len(list(PACKAGE.glob("*.py"))) <= 9


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=lambda path: path.name)
def test_every_folder_says_in_a_sentence_what_lives_there(folder: Path) -> None:
    text = (folder / "__init__.py").read_text("utf-8")
    assert re.match(r'"""[A-Z].{20,}', text), folder


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_is_in_the_table(module: Path) -> None:
    assert TABLE is not None
    top = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    # The demo's, dev's and the upscaler's files, and those of messages, are named by their folder.
    folders = {"demo", "dev", "upscaling", "messages"}
    stem = "schemas" if module.stem.endswith("_schemas") else module.stem
    names = {stem} if module.parent.name not in folders else {module.parent.name}
    assert re.search(rf"`{top}(/|\.py)", TABLE.group()), f"{top} has no row"
    assert any(re.search(rf"`{name}(/|`|\.py)", TABLE.group()) for name in names), f"{module.stem} is not named"


def _files() -> dict[str, list[str]]:
    """The text of every module by its file name; several have the same."""
    texts: dict[str, list[str]] = {}
    for path in MODULES:
        texts.setdefault(path.name, []).append(path.read_text("utf-8"))
    return texts


def test_every_function_on_the_way_of_a_request_exists() -> None:
    texts, seen = _files(), 0
    for path, names in re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT):
        if "/" in path:
            assert (PACKAGE / path).exists() or list(PACKAGE.rglob(path)), path
        for name in names.split("."):
            pattern = rf"(?:def|class) {name}\b"
            assert any(re.search(pattern, text) for text in texts[Path(path).name]), f"{path}:{name}"
            seen += 1
    assert seen > 40
