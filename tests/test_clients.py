"""What tests/clients runs is what docs/clients.md says was run."""

import json
import re
import tomllib

import pytest

from tests.support.server import ROOT

HERE = ROOT / "tests" / "clients"
HELPERS = {"aiohttp", "attrs", "httpx", "pillow", "pytest", "pytest-timeout", "requests", "@langchain/core"}
"""What the tests use themselves, and what a client needs."""

NODE: dict[str, str] = json.loads((HERE / "node" / "package.json").read_text("utf-8"))["dependencies"]
TAVERN: dict[str, str] = json.loads((HERE / "sillytavern" / "package.json").read_text("utf-8"))["dependencies"]
PYTHON: list[str] = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
CLIENTS = {
    name: version
    for name, version in (*(each.partition("==")[::2] for each in PYTHON), *NODE.items(), *TAVERN.items())
    if name not in HELPERS
}


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_client_that_is_run_has_one_version_and_the_document_names_it(name: str) -> None:
    assert re.fullmatch(r"[0-9][0-9a-z.]*", CLIENTS[name])
    rows = [line for line in (ROOT / "docs" / "clients.md").read_text("utf-8").splitlines() if line.startswith("|")]
    assert any(f"`{name}` {CLIENTS[name]}" in row for row in rows)


def test_every_client_for_node_is_used() -> None:
    text = (HERE / "node" / "clients.mjs").read_text("utf-8")
    assert [name for name in NODE if name not in HELPERS and f"from '{name}'" not in text] == []
