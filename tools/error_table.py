"""Write the table of errors in docs/api.md from :mod:`mflux_api.errors`. Run: ``python -m tools.error_table``."""

import inspect
import re
from pathlib import Path

from mflux_api.errors import all_errors

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "api.md"
BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"


def table() -> str:
    """Return the table as Markdown."""
    rows = ["| Status | Code | Meaning | Retry-After |", "|---|---|---|---|"]
    for error in all_errors():
        meaning = inspect.cleandoc(error.__doc__ or "").splitlines()[0]
        retry = f"{error.retry_after} s" if error.retry_after is not None else ""
        rows.append(f"| {error.status} | `{error.code}` | {meaning.replace('``', '`')} | {retry} |")
    return "\n".join(rows)


def update_tables(text: str) -> str:
    """Return the document with the table in its place."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(update_tables(DOCUMENT.read_text("utf-8")), "utf-8")
