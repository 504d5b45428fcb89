"""Write the index of files in docs/architecture.md from their first lines. Run: ``python -m tools.file_index``."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "mflux_api"

_BEGIN, _END = "<!-- files: made by tools/file_index.py -->", "<!-- end of files -->"


def update_index(text: str) -> str:
    """Return the document with its index as the files have it now."""
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n\n{_index()}\n{_END}{after}"


def _index() -> str:
    lines: list[str] = []
    folder: Path | None = None
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda each: (each.parent, each.name)):
        if path.name.startswith("__"):
            continue
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"**`{folder.relative_to(ROOT)}/`**", ""] if lines else [f"**`{folder.name}/`**", ""]
        lines.append(f"- `{path.name}`: {_first_words(path)}")
    return "\n".join(lines) + "\n"


def _first_words(path: Path) -> str:
    """The module's summary line, with Sphinx's roles and double backticks as Markdown has them."""
    text = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0].replace("\n", " ")
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


if __name__ == "__main__":
    DOCUMENT.write_text(update_index(DOCUMENT.read_text("utf-8")), "utf-8")
