"""``GET /api/v1/jobs`` with conditions, over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with scripted_api(tmp_path) as running:
        yield running


async def test_jobs_are_searched_by_what_they_were_asked_for(api: Api) -> None:
    house = await api.finished(1, prompt="ein ROTES Haus, 100%")
    lake = await api.finished(2, prompt="a lake")

    async def found(query: str) -> list[str]:
        answer = (await api.http.get(f"/api/v1/jobs?{query}")).json()
        assert answer["warnings"] == []
        return [job["id"] for job in answer["jobs"]]

    assert await found("q=haus+rotes") == [house.id]
    assert await found("q=100%25") == [house.id]
    assert await found("q=l%25ke") == []
    assert await found("q=") == [lake.id, house.id]
    assert await found("edit=true") == []
    assert await found("edit=false&status=failed,completed") == [lake.id, house.id]
    assert await found("status=failed&status=cancelled") == []
    assert await found(f"model={house.model}&limit=1") == [lake.id]
    assert await found("model=no-such") == []
    assert await found("lora=no-such") == []


async def test_a_search_goes_on_at_its_cursor(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mflux_api.actors.job_store.SEARCH_ROWS", 1)
    dog = await api.finished(1, prompt="a dog")
    for seed in (2, 3):
        await api.finished(seed, prompt="a cat")
    answer = (await api.http.get("/api/v1/jobs?q=dog")).json()
    assert [job["id"] for job in answer["jobs"]] == [dog.id]
    monkeypatch.setattr("mflux_api.gateway.jobs.SEARCH_SECONDS", 0.0)
    pages = [(await api.http.get("/api/v1/jobs?q=dog")).json()]
    while pages[-1]["next_cursor"] is not None:
        pages.append((await api.http.get(f"/api/v1/jobs?q=dog&cursor={pages[-1]['next_cursor']}")).json())
    assert [job["id"] for page in pages for job in page["jobs"]] == [dog.id]
    assert len(pages) >= 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("edit=maybe", "edit"),
        ("status=lost", "status"),
        ("status=queued,", "status"),
        ("q=" + "a" * 501, "q"),
        ("model=" + "a" * 513, "model"),
        ("q=a&cursor=nonsense", "cursor"),
        ("q=a&limit=0", "limit"),
    ],
)
async def test_a_condition_that_is_not_one_is_refused(api: Api, query: str, field: str) -> None:
    answer = await api.http.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["details"]["field"] == field


async def test_a_misspelled_condition_is_a_warning(api: Api) -> None:
    answer = (await api.http.get("/api/v1/jobs?modle=demo")).json()
    assert answer["warnings"] == ["'modle' is not known: did you mean 'model'?"]
