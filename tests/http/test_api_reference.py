"""``/docs``: its files are this server's own, under a prefix too, and a key is needed unless the settings say not."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from mflux_api.config import SecuritySettings, ServerSettings
from mflux_api.http.browser_files import POLICY
from tests.support.harness import settings
from tests.support.scripted_api import scripted_api

KEY = "a key that is long enough for it"


@pytest.mark.parametrize("prefix", ["", "/tools/images"])
async def test_reference_loads_from_this_server_alone(tmp_path: Path, prefix: str) -> None:
    below = attrs.evolve(settings(tmp_path), server=ServerSettings(root_path=prefix))
    async with scripted_api(tmp_path, changed=below) as api:
        page = await api.http.get("/docs")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["content-security-policy"] == POLICY
        assert f'<base href="{prefix}/">' in page.text
        assert "unsafe" not in POLICY
        named = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
        assert "://" not in page.text
        assert sorted(named) == ["docs/start.js", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css"]
        for name in named:
            file = await api.http.get(f"/{name}")
            assert file.status_code == 200
            assert file.headers["content-type"].split(";")[0] == ("text/css" if "css" in name else "text/javascript")
            again = await api.http.get(f"/{name}", headers={"If-None-Match": file.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2f__init__.py", "oauth2-redirect.html", "%00"])
async def test_no_other_file_of_the_package_is_served(tmp_path: Path, name: str) -> None:
    async with scripted_api(tmp_path) as api:
        assert (await api.http.get(f"/docs/{name}")).status_code == 404


async def test_reference_needs_a_key_unless_it_is_opened_with_what_it_shows(tmp_path: Path) -> None:
    paths = "/docs", "/docs/start.js", "/openapi.json"
    keyed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=(KEY,)))
    async with scripted_api(tmp_path, changed=keyed) as api:
        assert [(await api.http.get(path)).status_code for path in paths] == [401, 401, 401]
        assert [(await api.http.get(path, headers={"X-API-Key": KEY})).status_code for path in paths] == [200, 200, 200]
    opened = attrs.evolve(keyed, security=SecuritySettings(api_keys=(KEY,), open=("/docs",)))
    async with scripted_api(tmp_path, changed=opened) as api:
        assert [(await api.http.get(path)).status_code for path in paths] == [200, 200, 200]
        assert (await api.http.get("/metrics")).status_code == 401
