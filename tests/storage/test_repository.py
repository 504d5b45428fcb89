"""What every repository guarantees: one suite, run against each of them."""

from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path

import attrs
import pytest

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.errors import InternalError
from mflux_api.jobs import job as jobs
from mflux_api.jobs.idempotency import IdempotencyKey, IdempotencyRecord
from mflux_api.jobs.inpainting import Inpainting
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.resolve import ResolvedRequest, Upscaling
from mflux_api.jobs.webhook import Delivery, DeliveryState, Webhook
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.repository import Repository, Tombstone, Totals
from mflux_api.storage.sqlite import SqliteRepository
from tests.support.stored_jobs import NOW, completed, failed, queued, started, stored_images

ANA = Visibility(only="ana")
HOUR = timedelta(hours=1)
FOREVER = timedelta.max


@pytest.fixture(params=["memory", "sqlite"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    if request.param == "memory":
        yield InMemoryRepository()
        return
    with SqliteRepository(tmp_path / "jobs.sqlite3") as sqlite:
        yield sqlite


def fill(repository: Repository, *names: str) -> None:
    """One completed job per name; a name in capitals is a synchronous one."""
    for name in names:
        job = queued(name, synchronous=name.isupper())
        repository.insert(job)
        repository.replace(completed(job))


def ids(found: tuple[Job, ...]) -> list[str]:
    return [job.id for job in found]


def listed(
    repository: Repository, *, status: Status | None = None, limit: int = 100, visible: Visibility = ALL_JOBS
) -> list[str]:
    """Follow the cursors through all pages."""
    names: list[str] = []
    cursor = None
    while True:
        page = repository.page(limit=limit, cursor=cursor, status=status, visible=visible)
        assert len(page.jobs) <= limit
        names += ids(page.jobs)
        if page.next_cursor is None:
            return names
        cursor = page.next_cursor


# --- insert, replace, get ---


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_job_comes_back_as_it_was_in_every_state(repository: Repository, synchronous: bool) -> None:
    job = queued("a", synchronous=synchronous)
    states = [job, started(job), jobs.requeue(started(job), engine_died=True, service_died=True)]
    states += [started(states[-1]), completed(started(states[-1], NOW + HOUR), at=NOW + 2 * HOUR)]
    repository.insert(states[0])
    assert repository.get("a") == states[0]
    for state in states[1:]:
        repository.replace(state)
        assert repository.get("a") == state


@pytest.mark.parametrize("end", [completed, failed, lambda job: jobs.cancel(job, NOW, progress=0.5)])
def test_every_end_comes_back_with_its_result(repository: Repository, end: object) -> None:
    assert callable(end)
    job = started(queued("a"))
    repository.insert(job)
    repository.replace(end(job))
    assert repository.get("a") == end(job)


def test_every_field_of_the_request_comes_back(repository: Repository) -> None:
    request = ResolvedRequest(
        prompt="naïve 猫 \U0001f408 \ud800 \0 'x\"",
        model="demo",
        negative_prompt="dogs",
        seed=2**53 - 5,
        width=1024,
        height=768,
        steps=50,
        guidance=4.5,
        num_images=3,
        lora_files=("a.safetensors", "b.safetensors"),
        lora_scales=(0.5, 1.0),
        low_ram=True,
        init_images=("iVBORwAA", "iVBORwAB"),
        image_strength=0.75,
        inpainting=Inpainting(result=(500, 333), masked=True, blur=(2.5, 4.0), padding=32, extend=(1, 2, 3, 4)),
        mask="iVBORwAC",
        upscaling=Upscaling(resolution=64, softness=0.5),
        output_format="webp",
        output_compression=80,
        partial_images=2,
        priority=3,
        lane=3,
        webhook=Webhook(url="https://a.example/", events=("failed",)),
        warnings=("A field that is not known was ignored",),
    )
    untouched = {field.name for field in attrs.fields(ResolvedRequest) if getattr(request, field.name) == field.default}
    assert untouched == set()
    job = attrs.evolve(queued("a"), request=request)
    repository.insert(job)
    (kept,) = repository.unfinished()
    assert len(kept.request.init_images) == 2
    assert attrs.evolve(kept, request=kept.request.with_inputs(repository.inputs("a")())) == job
    found = repository.get("a")
    assert isinstance(found, Job)
    assert attrs.evolve(found, request=found.request.with_inputs(request.inputs)) == job


def test_times_of_other_zones_are_the_same_moments(repository: Repository) -> None:
    job = queued("a", created_at=NOW.astimezone(timezone(timedelta(hours=5, minutes=30))))
    repository.insert(job)
    found = repository.get("a")
    assert isinstance(found, Job)
    assert found.created_at == NOW


@pytest.mark.parametrize("name", ["", "unknown", "\0", "\ud800", "ä", "a' OR 1=1 --", "x" * 100_000])
def test_an_unknown_id_is_nothing(repository: Repository, name: str) -> None:
    fill(repository, "a")
    assert repository.get(name) is None


def test_replacing_an_unknown_job_is_a_key_error_and_changes_nothing(repository: Repository) -> None:
    with pytest.raises(KeyError):
        repository.replace(completed(queued("a")))
    assert repository.get("a") is None
    assert repository.totals() == Totals()
    fill(repository, "a")
    assert repository.get("a") == completed(queued("a"))


@pytest.mark.parametrize("first", ["a", "A"])
@pytest.mark.parametrize("second_is_synchronous", [False, True])
def test_an_id_is_taken_once(repository: Repository, first: str, second_is_synchronous: bool) -> None:
    job = queued(first, synchronous=first.isupper())
    repository.insert(job)
    with pytest.raises(InternalError):
        repository.insert(queued(first, synchronous=second_is_synchronous, prompt="another"))
    assert repository.get(first) == job
    assert listed(repository) == [first]


# --- lists ---


def test_the_list_is_newest_first_whatever_the_clock_says(repository: Repository) -> None:
    for n, name in enumerate("abc"):
        repository.insert(queued(name, created_at=NOW - n * HOUR))
    assert listed(repository) == ["c", "b", "a"]


def test_synchronous_jobs_stand_among_the_others_before_and_after_their_end(repository: Repository) -> None:
    for name in ["a", "B", "c", "D", "e"]:
        repository.insert(queued(name, synchronous=name.isupper()))
    assert listed(repository) == ["e", "D", "c", "B", "a"]
    assert listed(repository, limit=2) == ["e", "D", "c", "B", "a"]
    assert ids(repository.unfinished()) == ["a", "B", "c", "D", "e"]
    repository.replace(completed(queued("D", synchronous=True)))
    repository.replace(started(queued("B", synchronous=True)))
    repository.replace(completed(queued("a")))
    assert listed(repository, limit=1) == ["e", "D", "c", "B", "a"]
    assert ids(repository.unfinished()) == ["B", "c", "e"]
    assert listed(repository, status=Status.GENERATING) == ["B"]
    assert listed(repository, status=Status.COMPLETED, limit=1) == ["D", "a"]
    assert listed(repository, status=Status.QUEUED, limit=1) == ["e", "c"]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
def test_pages_are_full_and_miss_nothing(repository: Repository, limit: int) -> None:
    fill(repository, "a", "B", "c", "D", "e", "F", "g")
    assert listed(repository, limit=limit) == ["g", "F", "e", "D", "c", "B", "a"]
    assert len(repository.page(limit=limit, cursor=None, status=None).jobs) == min(limit, 7)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_of_one_owner_are_full_and_have_no_other_job(repository: Repository, limit: int) -> None:
    for number, owner in enumerate(["ana", "bob", "ana", "", "ana", "bob", "ana"]):
        job = attrs.evolve(queued(f"{number}", synchronous=number == 4), owner=owner)
        repository.insert(job)
        if number < 3:
            repository.replace(completed(job))
    assert listed(repository, limit=limit, visible=ANA) == ["6", "4", "2", "0"]
    assert listed(repository, limit=limit, visible=ANA, status=Status.COMPLETED) == ["2", "0"]
    assert listed(repository, limit=limit, visible=Visibility(only="")) == ["3"]
    assert listed(repository, limit=limit, visible=Visibility(only="an")) == []
    assert listed(repository, limit=limit, visible=Visibility(hidden=("bob", "an"))) == ["6", "4", "3", "2", "0"]
    assert listed(repository, limit=limit, visible=Visibility(hidden=("bob", "ana", ""))) == []


def test_tombstone_says_whose_job_it_was(repository: Repository) -> None:
    repository.insert(attrs.evolve(completed(queued("a")), owner="ana"))
    repository.expire(now=NOW, keep=0, ttl=FOREVER)
    assert repository.get("a") == Tombstone(id="a", removed_at=NOW, owner="ana")


def test_an_empty_list_is_one_page(repository: Repository) -> None:
    page = repository.page(limit=1, cursor=None, status=None)
    assert (page.jobs, page.next_cursor) == ((), None)


def test_paging_goes_on_below_the_cursor_though_jobs_come_and_go(repository: Repository) -> None:
    fill(repository, "a", "b", "c", "d")
    cursor = repository.page(limit=2, cursor=None, status=None).next_cursor
    fill(repository, "e")
    repository.expire(now=NOW, keep=1, ttl=FOREVER)
    fill(repository, "f")
    assert repository.page(limit=2, cursor=cursor, status=None).jobs == ()
    fill(repository, "g")
    assert listed(repository) == ["g", "f", "e"]


@pytest.mark.parametrize("cursor", ["", "-1", "+1", " 1", "1_0", "0", "01", "g", "A", "٣", "1\n", "f" * 16, "\ud800"])
def test_an_unknown_cursor_is_a_value_error(repository: Repository, cursor: str) -> None:
    fill(repository, "a", "b")
    with pytest.raises(ValueError, match="cursor"):
        repository.page(limit=1, cursor=cursor, status=None)


# --- totals ---


def test_totals_count_completed_jobs_once(repository: Repository) -> None:
    first, second, third, fourth = queued("a"), queued("B", synchronous=True), queued("c"), queued("d")
    for job in (first, second, third, fourth):
        repository.insert(job)
    repository.replace(completed(first, seconds=1.5))
    repository.replace(completed(first, seconds=1.5))
    assert repository.totals() == Totals(generations=1, images=2, seconds=1.5)
    repository.replace(completed(second, seconds=2.25, images=stored_images("B", 1)))
    repository.replace(failed(third))
    repository.replace(jobs.cancel(fourth, NOW))
    assert repository.totals() == Totals(generations=2, images=3, seconds=3.75)


# --- retention ---


def test_jobs_beyond_the_newest_are_removed_and_leave_a_tombstone(repository: Repository) -> None:
    fill(repository, "a", "B", "c", "d")
    before = repository.totals()
    removed = repository.expire(now=NOW, keep=2, ttl=FOREVER)
    assert removed == (completed(queued("a")), completed(queued("B", synchronous=True)))
    assert repository.get("a") == Tombstone(id="a", removed_at=NOW)
    assert repository.get("B") == Tombstone(id="B", removed_at=NOW)
    assert listed(repository) == ["d", "c"]
    assert repository.totals() == before
    assert repository.expire(now=NOW, keep=2, ttl=FOREVER) == ()


def test_the_job_that_finished_last_outlives_those_accepted_after_it(repository: Repository) -> None:
    slow, quick = queued("slow"), queued("quick")
    repository.insert(slow)
    repository.insert(quick)
    repository.replace(completed(quick, at=NOW + HOUR))
    # The clock was set back in between.
    repository.replace(completed(slow, at=NOW))
    assert ids(repository.expire(now=NOW, keep=1, ttl=FOREVER)) == ["quick"]


def test_jobs_go_when_they_ended_longer_than_ttl_ago(repository: Repository) -> None:
    for n, name in enumerate(["a", "B", "c"]):
        job = queued(name, synchronous=name.isupper(), created_at=NOW - 100 * HOUR)
        repository.insert(job)
        repository.replace(completed(job, at=NOW + n * HOUR))
    assert repository.expire(now=NOW + 3 * HOUR, keep=100, ttl=3 * HOUR) == ()
    late = NOW + 4 * HOUR + timedelta(microseconds=1)
    assert ids(repository.expire(now=late, keep=100, ttl=3 * HOUR)) == ["a", "B"]
    assert listed(repository) == ["c"]


def test_a_tombstone_goes_after_another_ttl(repository: Repository) -> None:
    fill(repository, "a")
    gone = NOW + HOUR
    repository.expire(now=gone, keep=0, ttl=2 * HOUR)
    repository.expire(now=gone + 2 * HOUR, keep=0, ttl=2 * HOUR)
    assert repository.get("a") == Tombstone(id="a", removed_at=gone)
    repository.expire(now=gone + 2 * HOUR + timedelta(microseconds=1), keep=0, ttl=2 * HOUR)
    assert repository.get("a") is None


def test_unfinished_jobs_never_expire(repository: Repository) -> None:
    for name in ["a", "B", "c"]:
        repository.insert(queued(name, synchronous=name.isupper(), created_at=NOW - 1000 * HOUR))
    repository.replace(started(queued("c"), NOW - 1000 * HOUR))
    assert repository.expire(now=NOW, keep=0, ttl=timedelta(0)) == ()
    assert ids(repository.unfinished()) == ["a", "B", "c"]


def test_a_job_whose_files_cannot_be_deleted_stays_and_holds_up_no_other(repository: Repository) -> None:
    fill(repository, "a", "B", "c")
    removed = repository.expire(now=NOW, keep=0, ttl=FOREVER, discard=lambda job: job.id != "B")
    assert (ids(removed), listed(repository)) == (["a", "c"], ["B"])
    assert ids(repository.expire(now=NOW, keep=0, ttl=FOREVER)) == ["B"]


def test_the_id_of_a_removed_job_is_not_used_again(repository: Repository) -> None:
    fill(repository, "a")
    repository.expire(now=NOW, keep=0, ttl=FOREVER)
    with pytest.raises(InternalError):
        repository.insert(queued("a"))
    with pytest.raises(KeyError):
        repository.replace(completed(queued("a")))


# --- the memory repository alone ---


def test_memory_stays_bounded_by_itself() -> None:
    repository = InMemoryRepository(keep_finished=2)
    waiting = queued("waiting")
    repository.insert(waiting)
    fill(repository, "a", "b", "c", "d", "e")
    assert listed(repository) == ["e", "d", "waiting"]
    assert repository.get("c") == Tombstone(id="c", removed_at=NOW)
    assert repository.get("a") is None
    assert repository.totals().generations == 5


def test_memory_without_a_bound_of_its_own_drops_nothing_unasked() -> None:
    repository = InMemoryRepository(keep_finished=None)
    for number in range(1500):
        job = queued(f"{number:012x}")
        repository.insert(job)
        repository.replace(completed(job))
    assert len(repository.page(limit=2000, cursor=None, status=None).jobs) == 1500
    assert len(repository.expire(now=NOW, keep=500, ttl=timedelta.max)) == 1000


def test_key_is_kept_with_its_job_and_goes_with_its_tombstone(repository: Repository) -> None:
    job, key = queued("0" * 12), IdempotencyKey(key="k", body="b")
    repository.insert(job, key)
    repository.insert(queued("1" * 12), IdempotencyKey(key="other", body="b"))
    with pytest.raises(InternalError):
        repository.insert(queued("2" * 12), key)
    assert repository.get("2" * 12) is None
    kept = IdempotencyRecord(body="b", job_id=job.id)
    repository.replace(started(job))
    repository.replace(completed(started(job)))
    assert repository.get_idempotency_record("k") == kept
    repository.expire(now=NOW, keep=0, ttl=timedelta(hours=1))
    assert repository.get_idempotency_record("k") == kept
    repository.expire(now=NOW + timedelta(hours=2), keep=0, ttl=timedelta(hours=1))
    assert repository.get_idempotency_record("k") is None
    assert repository.get_idempotency_record("other") is not None


# --- webhooks ---


def with_webhook(job: Job) -> Job:
    return attrs.evolve(job, request=attrs.evolve(job.request, webhook=Webhook(url="https://a.example/")))


@pytest.mark.parametrize("synchronous", [False, True])
def test_end_and_its_delivery_are_one_change(repository: Repository, synchronous: bool) -> None:
    job = with_webhook(queued("a", synchronous=synchronous))
    repository.insert(job)
    assert repository.undelivered() == ()
    repository.replace(completed(job))
    assert repository.undelivered() == (completed(job),)
    assert repository.owners_of_undelivered() == {"a": job.owner}
    assert repository.get("a") == completed(job)


def test_undelivered_jobs_come_in_the_order_they_are_due(repository: Repository) -> None:
    for name, hours in (("a", 3), ("b", 1), ("c", 2)):
        repository.insert(with_webhook(queued(name)))
        repository.replace(completed(with_webhook(queued(name)), at=NOW + hours * HOUR))
    fill(repository, "d")
    assert ids(repository.undelivered()) == ["b", "c", "a"]


@pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.FAILED])
def test_delivery_that_is_over_is_kept_with_its_job_and_is_not_counted_again(
    repository: Repository, state: DeliveryState
) -> None:
    repository.insert(with_webhook(queued("a")))
    ended = completed(with_webhook(queued("a")))
    repository.replace(ended)
    before = repository.totals()
    over = jobs.with_delivery(ended, Delivery(state=state, attempts=3, last_error="the receiver answered 503"))
    repository.replace(over)
    assert repository.undelivered() == ()
    assert repository.owners_of_undelivered() == {}
    assert repository.get("a") == over
    assert repository.totals() == before
