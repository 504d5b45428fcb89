"""The page at ``/``: who gets it, what it may load, and that it asks for nothing that the public API does not have."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import attrs
import httpx
import pytest

from mflux_api.config import SecuritySettings, ServerSettings
from mflux_api.http.openapi import OPERATIONS
from mflux_api.http.page_files import INDEX, POLICY, read_files
from tests.support.harness import settings
from tests.support.scripted_api import Api, scripted_api

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"}
KEY = "a key that is long enough for it"
FILES = read_files()
SCRIPTS = {name: file.data.decode() for name, file in FILES.items() if name.endswith(".js")}


async def page_of(api: Api, **headers: str) -> httpx.Response:
    return await api.http.get("/", headers=BROWSER | headers)


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, text/html;q=0.5"])
async def test_machines_get_json_where_browsers_get_the_page(tmp_path: Path, accept: str | None) -> None:
    async with scripted_api(tmp_path) as api:
        page = await page_of(api)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["vary"] == "Accept"
        answer = await api.http.get("/", headers={} if accept is None else {"Accept": accept})
        assert answer.json().keys() == {"service", "version", "model", "api"}


async def test_page_and_its_files_need_no_key_and_what_it_asks_for_does(tmp_path: Path) -> None:
    keyed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=(KEY,)))
    async with scripted_api(tmp_path, changed=keyed) as api:
        assert (await page_of(api)).status_code == 200
        for name in FILES.keys() - {INDEX}:
            assert (await api.http.get(f"/page/{name}")).status_code == 200
        assert (await api.http.get("/favicon.ico")).headers["content-type"] == "image/svg+xml"
        assert (await api.http.get("/api/v1/jobs")).status_code == 401


async def test_browser_does_not_ask_for_a_password_before_the_page_does(tmp_path: Path) -> None:
    keyed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=(KEY,)))
    async with scripted_api(tmp_path, changed=keyed) as api:
        by_itself = await api.http.get("/api/v1/jobs")
        by_the_page = await api.http.get("/api/v1/jobs", headers={"X-Requested-With": "XMLHttpRequest"})
        assert by_itself.headers["www-authenticate"].startswith("Basic")
        assert (by_the_page.status_code, by_the_page.headers.get("www-authenticate")) == (401, None)
    assert '"X-Requested-With": "XMLHttpRequest"' in SCRIPTS["api.js"]


async def test_file_that_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        for path, headers in (("/", BROWSER), ("/page/app.js", {})):
            first = await api.http.get(path, headers=headers)
            again = await api.http.get(path, headers=headers | {"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "__init__.py", "..%2f..%2fversion.py", "%00"])
async def test_what_is_no_file_of_the_page_is_404(tmp_path: Path, name: str) -> None:
    async with scripted_api(tmp_path) as api:
        assert (await api.http.get(f"/page/{name}")).status_code == 404


async def test_page_below_a_path_asks_below_it(tmp_path: Path) -> None:
    below = attrs.evolve(settings(tmp_path), server=ServerSettings(root_path="/tools/images"))
    async with scripted_api(tmp_path, changed=below) as api:
        page = await page_of(api)
        assert '<base href="/tools/images/">' in page.text


def test_every_address_in_the_page_is_relative_and_in_the_package() -> None:
    html = FILES[INDEX].data.decode()
    named = re.findall(r'(?:src|href)="page/([^"]+)"', html)
    assert {*named, *re.findall(r'from "\./([^"]+)"', "".join(SCRIPTS.values()))} <= FILES.keys()
    assert set(SCRIPTS) <= {*named, *re.findall(r'from "\./([^"]+)"', "".join(SCRIPTS.values()))}
    namespace = "http://www.w3.org/2000/svg"
    for name, file in FILES.items():
        text = file.data.decode().replace(namespace, "")
        assert "://" not in text, name
        assert not re.search(r'(?:fetch|EventSource|src=|href=)\(?["`]/(?!")', text.replace('<base href="/">', "")), (
            name
        )


def test_every_route_that_the_scripts_ask_is_one_of_the_public_api() -> None:
    known = {re.sub(r"\{[^}]+\}", "{}", operation.path) for operation in OPERATIONS}
    asked = set[str]()
    for text in SCRIPTS.values():
        for path in re.findall(r'(?<![.\w])(?:get|post)\(["`]([^"`?]+)', text):
            asked.add(f"/api/v1/{path}")
        for path in re.findall(r'ask\("[A-Z]+", ["`]([^"`]+)["`]', text):
            asked.add(f"/api/v1/{path}")
        for path in re.findall(r'(?:fetch|EventSource)\(["`](api/[^"`?]+)', text):
            asked.add(f"/{path}")
        for path in re.findall(r"`(api/v1/jobs/[^`?$]*\$\{id\}/images/\$\{index\})", text):
            asked.add(f"/{path}")
    # The last one is what all of these go through.
    found = {re.sub(r"\$\{[^}]+\}", "{}", path) for path in asked} - {"/api/v1/{}"}
    assert len(found) >= 9
    assert found <= known


def test_first_load_is_small() -> None:
    assert sum(len(file.data) for file in FILES.values()) < 100_000
    assert sum(map(len, SCRIPTS.values())) < 60 * 1024


def test_markup_has_no_script_and_no_style_of_its_own() -> None:
    html = FILES[INDEX].data.decode()
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == [""]
    assert not any('setAttribute("style"' in text or "innerHTML" in text for text in SCRIPTS.values())


def test_no_text_becomes_code_or_markup() -> None:
    rules = {name: value for name, _, value in (rule.partition(" ") for rule in POLICY.split("; "))}
    assert (rules["default-src"], rules["script-src"], rules["style-src"]) == ("'none'", "'self'", "'self'")
    # The browser refuses what the second line looks for, in code that is not here yet too.
    assert (rules["require-trusted-types-for"], rules["trusted-types"]) == ("'script'", "'none'")
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


def test_package_holds_nothing_but_the_page() -> None:
    names = {entry.name for entry in files("mflux_api.page").iterdir()} - {"__init__.py", "__pycache__"}
    assert names == FILES.keys()
