"""The documents fail when they fall behind the code."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import mflux_api
from mflux_api.config import Settings, load_settings
from mflux_api.errors import all_errors
from mflux_api.service import open_service
from tests.support.harness import DEADLINE_SECONDS
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Script
from tests.support.server import ROOT, clean_environment
from tools.error_table import DOCUMENT, update_tables


def test_error_table_is_made_from_the_errors() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert update_tables(text) == text, "run: uv run --group dev python -m tools.error_table"
    assert all(f"`{error.code}`" in text for error in all_errors())


def test_error_codes_are_unique_and_statuses_agree_with_the_contract() -> None:
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))
    assert {error.status for error in all_errors()} <= {
        400,
        401,
        403,
        404,
        405,
        408,
        409,
        410,
        413,
        415,
        429,
        500,
        501,
        503,
    }


def test_every_route_is_documented_in_openapi_and_in_the_docs() -> None:
    from mflux_api.http.openapi import OPERATIONS

    text = DOCUMENT.read_text("utf-8")
    for operation in OPERATIONS:
        path = operation.path.replace("{job_id}", "{id}").replace("{model_id}", "{id}").replace("{index}", "{n}")
        assert path in text or path.removeprefix("/sdapi/v1") in text, path


@pytest.mark.slow
def test_embedding_example_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    example = _examples(text)[0]
    script = tmp_path / "example.py"
    script.write_text(example, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert ".png" in done.stdout
    assert "denoising" in done.stdout


def _examples(text: str) -> list[str]:
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "trio.run(main)" in block]


async def test_example_with_a_bar_and_a_cancel_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a scripted engine: what is shown is the service's side."""
    [_, example] = _examples((ROOT / "docs" / "embedding.md").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mflux_api.service.open_service", partial(open_service, start_engine=Script().start))
    names: dict[str, Any] = {}
    exec(compile(example.replace("trio.run(main)", ""), "example", "exec"), names)
    with trio.fail_after(DEADLINE_SECONDS):
        await names["main"]()
    shown = capsys.readouterr()
    completed, cancelled, found = shown.out.splitlines()
    assert completed.startswith("completed ['")
    assert completed.endswith(".png']")
    assert (cancelled, found) == ("cancelled", "2 jobs about a lake")
    assert "[####################] saving" in shown.err


async def test_example_of_the_client_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    [example] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "mflux_api.client" in block]
    monkeypatch.chdir(tmp_path)
    async with scripted_api(tmp_path) as api:
        here = example.replace("http://localhost:7861", f"http://127.0.0.1:{api.port}")
        await trio.to_thread.run_sync(exec, compile(here, "example", "exec"), {})
    assert "completed ()" in capsys.readouterr().out
    assert (tmp_path / "house.png").read_bytes().startswith(b"\x89PNG")


def test_hardened_configuration_loads_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "config.toml").write_text(block, "utf-8")
    hardened = load_settings(tmp_path / "config.toml", environ={})
    default = Settings()
    assert hardened.server.host == "127.0.0.1"
    assert hardened.security.allowed_hosts
    assert hardened.security.keys_file is not None
    assert "*" not in hardened.server.cors_origins
    assert hardened.state_dir != hardened.generation.output_dir
    assert (hardened.generation.metadata, hardened.models.auto_download) == (False, False)
    # It may only narrow what is allowed.
    assert hardened.scheduler.max_queue <= default.scheduler.max_queue
    assert hardened.lora.max_upload_mb <= default.lora.max_upload_mb


def test_public_names_all_resolve() -> None:
    assert sorted(mflux_api.__all__) == mflux_api.__all__
    assert all(getattr(mflux_api, name) is not None for name in mflux_api.__all__)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    for target, heading in re.findall(r"\]\((?!http)([^)#]*\.md)?#([^)]+)\)", text):
        linked = path.parent / target if target else path
        assert heading in _anchors(linked.read_text("utf-8")), f"{target}#{heading}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_decision_is_in_the_index_and_has_its_headings() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", (folder / "README.md").read_text("utf-8"), re.MULTILINE)
    pages = sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")
    assert sorted(listed) == pages
    for page in pages:
        headings = re.findall(r"^## (.+)$", (folder / page).read_text("utf-8"), re.MULTILINE)
        assert headings == ["Question", "Decision", "Alternatives", "What it costs", "When to think again"], page


def test_readme_takes_under_two_screens() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 90


def test_readme_commands_are_the_two_of_the_project() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert 'pip install uv && uv run mflux-api generate "a beautiful sunset over mountains" --model demo' in text
    assert "pip install uv && uv run --group dev pytest" in text
    assert "uv run --group dev pytest" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_guarantees_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    proofs = re.findall(r"`(tests/[^`:]+)::(\w+)`", text)
    assert proofs
    for file, test in proofs:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}::{test}"
