"""Searching jobs: the same answers of every storage, within a bound that no list's length changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.resolve import Upscaling
from mflux_api.jobs.search import JobFilter, fold, fold_words
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.repository import Repository
from mflux_api.storage.sqlite import SqliteRepository
from tests.support.stored_jobs import completed, failed, queued, started


@pytest.fixture(params=["memory", "sqlite"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    if request.param == "memory":
        yield InMemoryRepository()
        return
    with SqliteRepository(tmp_path / "jobs.sqlite3") as sqlite:
        yield sqlite


def job(job_id: str, prompt: str = "a cat", *, owner: str = "", synchronous: bool = False, **fields: Any) -> Job:
    made = queued(job_id, prompt=prompt, synchronous=synchronous)
    return attrs.evolve(made, owner=owner, request=attrs.evolve(made.request, **fields))


def found(
    repository: Repository, *, limit: int = 2, rows: int = 3, visible: Visibility = ALL_JOBS, **asked: Any
) -> list[str]:
    """Follow the cursors to the end."""
    where = JobFilter(**asked)
    names: list[str] = []
    cursor = None
    while True:
        page = repository.search(where, limit=limit, cursor=cursor, rows=rows, visible=visible)
        assert len(page.jobs) <= limit
        names += [each.id for each in page.jobs]
        if page.next_cursor is None:
            return names
        cursor = page.next_cursor


def test_every_word_of_the_prompt_has_to_be_there_in_any_case(repository: Repository) -> None:
    for name, prompt in [
        ("a", "Ein ROTES Haus in Köln"),
        ("b", "ein Haus"),
        ("c", "ein rotes Haus in Ko\u0308ln"),
        ("d", "СТАРЫЙ город, 100% gross_"),
        ("e", "Straße \ud800"),
    ]:
        repository.insert(job(name, prompt))
    assert found(repository, words=fold_words("HAUS köln")) == ["c", "a"]
    assert found(repository, words=fold_words("старый")) == ["d"]
    assert found(repository, words=fold_words("strasse")) == ["e"]
    assert found(repository, words=fold_words("100% s_")) == ["d"]
    assert found(repository, words=fold_words("h%s")) == []
    assert found(repository, words=fold_words("h_us")) == []
    assert found(repository, words=fold_words("' OR 1=1 --")) == []


def test_model_lora_status_and_edits(repository: Repository) -> None:
    repository.insert(job("a", model="klein", lora_files=("sub/ink.safetensors",), lora_scales=(1.0,)))
    repository.insert(job("b", model="demo-8-bit"))
    edit = job("c", image_strength=0.5)
    repository.insert(edit)
    repository.replace(started(edit))
    repository.replace(completed(started(edit)))
    repository.insert(job("d", model="seedvr2", upscaling=Upscaling(resolution=512)))
    waits = job("e", synchronous=True, image_strength=0.5)
    repository.insert(waits)
    repository.replace(started(waits))
    repository.replace(failed(job("b", model="demo-8-bit")))
    assert found(repository, model="klein") == ["a"]
    for name in ("ink", "ink.safetensors", "sub/ink", "sub/ink.safetensors"):
        assert found(repository, lora=name) == ["a"]
    assert found(repository, lora="in") == []
    assert found(repository, edit=True) == ["e", "d", "c"]
    assert found(repository, edit=False) == ["b", "a"]
    assert found(repository, statuses=(Status.FAILED, Status.GENERATING)) == ["e", "b"]
    assert found(repository, statuses=(Status.QUEUED,), edit=True) == ["d"]
    assert found(repository) == ["e", "d", "c", "b", "a"]


def test_only_visible_jobs_are_found(repository: Repository) -> None:
    repository.insert(job("a", owner="key ana"))
    repository.insert(job("b", owner="key ben"))
    repository.insert(job("c", owner="key ben", synchronous=True))
    assert found(repository, words=("cat",), visible=Visibility(only="key ana")) == ["a"]
    assert found(repository, words=("cat",), visible=Visibility(hidden=("key ben",))) == ["a"]
    assert found(repository, words=("cat",)) == ["c", "b", "a"]


def test_one_page_looks_at_no_more_than_its_rows(repository: Repository) -> None:
    repository.insert(job("first", "the one dog"))
    for number in range(10):
        repository.insert(job(f"{number}"))
    page = repository.search(JobFilter(words=("dog",)), limit=5, cursor=None, rows=10)
    assert page.jobs == ()
    assert page.next_cursor is not None
    page = repository.search(JobFilter(words=("dog",)), limit=5, cursor=page.next_cursor, rows=10)
    assert [each.id for each in page.jobs] == ["first"]
    assert page.next_cursor is None
    with pytest.raises(ValueError, match="cursor"):
        repository.search(JobFilter(), limit=1, cursor="0", rows=1)


def test_a_row_that_cannot_be_read_keeps_no_other_from_being_found(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / "jobs.sqlite3") as repository:
        for name in "abc":
            repository.insert(job(name))
        repository._file.connection.execute("UPDATE jobs SET request = '[' WHERE id = 'b'")
        assert found(repository, words=("cat",)) == ["c", "a"]


@pytest.mark.parametrize("statuses", [(), (Status.QUEUED,), (Status.QUEUED, Status.FAILED)])
@pytest.mark.parametrize("visible", [ALL_JOBS, Visibility(only="key ana"), Visibility(hidden=("key ana",))])
def test_a_search_sorts_no_table(tmp_path: Path, statuses: tuple[Status, ...], visible: Visibility) -> None:
    with SqliteRepository(tmp_path / "jobs.sqlite3") as repository:
        repository.insert(job("a"))
        connection = repository._file.connection
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        repository.search(JobFilter(words=("dog",), statuses=statuses), limit=1, cursor="3", rows=9, visible=visible)
        connection.set_trace_callback(None)
        plans = [
            " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
            for query in statements
            if "number <" in query
        ]
    assert len(plans) == max(1, len(statuses))
    for plan in plans:
        assert "SEARCH jobs USING" in plan
        assert "B-TREE" not in plan


@given(st.text(max_size=40), st.text(max_size=10))
def test_a_quick_look_agrees_with_the_job(prompt: str, query: str) -> None:
    where = JobFilter(words=fold_words(query))
    made = job("a", prompt)
    assert where.may_take(msgspec.json.encode({"prompt": prompt, "model": "demo", "other": [1]})) == where.takes(made)
    assert where.takes(made) == all(fold(word) in fold(prompt) for word in query.split())
