"""Named for what a job would see if `model_loader.py` did not keep its word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import local_disk
from mflux_api.actors.leasing import leased
from mflux_api.actors.mailbox import ActorGone, Address, Mailbox
from mflux_api.actors.model_loader.model_loader import ModelLoader
from mflux_api.actors.model_loader.residency import MemoryBudget
from mflux_api.catalog import Catalog, Model
from mflux_api.config import MemorySettings
from mflux_api.engine.interface import EngineDied
from mflux_api.engine.protocol import Ready
from mflux_api.errors import InternalError, ModelInUse, ModelNotFound, OutOfMemory
from mflux_api.storage.checkpoints import EMBEDDED, Checkpoints
from mflux_api.storage.footprint import Footprint
from mflux_api.storage.loras import LoraFiles
from tests.support.crew import checkpoints, fill, run_mocked, running

READY = Ready(
    pid=1,
    device="cpu",
    device_name="a CPU",
    precision="float32",
    blas="",
    blas_fast=False,
    versions={},
)
CUSTOM = Model(alias="mine", repo="", base="flux2-klein-4b", description="custom", path="/models/mine")


ONE = MemorySettings(budget_gb=1.0)
"""Room for one model."""
SIZES = {
    "mine": 1.0,
    "other": 1.0,
    "demo": 1.0,
    "small": 0.4,
    "tiny": 0.3,
    "huge": 5.0,
    "dev": 3.0,
    "flux2-klein-4b": 1.0,
}
"""In GB; a fifth of it with component offload, three fifths when its large components take turns (dev alone can)."""


async def _locate(model: Model) -> Path | None:
    return Checkpoints(Path("/cache")).folder(model)


async def _measure(model: Model, float_bytes: int) -> Footprint | None:
    await trio.lowlevel.checkpoint()
    assert float_bytes in (2, 4)
    size = SIZES[model.base if model.bits else model.alias]
    alternating_offload = int(size * 6e8) if model.alias == "dev" else None
    return Footprint(
        whole=int(size * 1e9),
        component_offload=int(size * 2e8),
        alternating_offload=alternating_offload,
        unpacked=int(size * 2e9) if model.bits else None,
    )


class LoaderUnderTest:
    """A loader, and a generator that does what it is told."""

    def __init__(self, preload: str | None = None, memory: MemorySettings = ONE) -> None:
        self.loader_box: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
        self.generator_box: Mailbox[m.GeneratorMessage] = Mailbox(m.GENERATOR)
        self.scheduler_box: Mailbox[m.SchedulerMessage] = Mailbox(m.SCHEDULER)
        self.stats_box: Mailbox[m.StatsMessage] = Mailbox(m.STATS)
        self.address = Address(self.loader_box, sender=m.SCHEDULER, asks=m.ASK_GRAPH)
        self.actor = ModelLoader(
            "0",
            self.loader_box,
            Address(self.generator_box, sender=m.MODEL_LOADER, asks=m.ASK_GRAPH),
            Address(self.scheduler_box, sender=m.MODEL_LOADER, asks=m.ASK_GRAPH),
            Address(self.stats_box, sender=m.MODEL_LOADER, asks=m.ASK_GRAPH),
            Catalog(attrs.evolve(CUSTOM, alias=alias, path=f"/models/{alias}") for alias in SIZES if alias != "demo"),
            memory,
            attrs.evolve(local_disk(Checkpoints(Path("/cache")), LoraFiles(())), locate=_locate, measure=_measure),
            preload=preload,
        )
        self.ready = READY
        self.free: int | None = None
        self.free_at_rest: int | None = None
        """What is free when the memory is measured again."""
        self.measured = 0
        self.deaths_at_rest = 0
        """How often the engine dies when its memory is to be measured."""
        self.weights_bytes = 0
        """What the engine says that a loaded model takes."""
        self.unloads: list[str] = []
        self.out_of_memory = 0
        """How many loads the engine refuses."""
        self.incarnation = 1
        self.up = True
        self.hold = False
        """Whether loads wait for the test to answer them."""
        self.held: m.LoadModel | None = None
        self.loads: list[str] = []
        self.asked_for: dict[str, m.Acquire] = {}
        """Each acquisition."""
        self.got: dict[str, m.Lease | type[Exception]] = {}
        """What came of each acquisition, in the order of the answers."""

    async def generate(self) -> None:
        while True:
            message = await self.generator_box.receive()
            match message:
                case m.GetEngine():
                    message.reply.ok(self.state())
                case m.AwaitEngine():
                    self.up = True
                    message.reply.ok(self.state())
                case m.MeasureMemory() if self.deaths_at_rest:
                    self.deaths_at_rest -= 1
                    self.incarnation, self.up = self.incarnation + 1, False
                    message.reply.fail(EngineDied("scripted"))
                case m.MeasureMemory():
                    self.measured += 1
                    if self.free_at_rest is not None:
                        self.free = self.free_at_rest
                    message.reply.ok(self.state())
                case m.UnloadModel():
                    self.unloads.append(message.command.model)
                    message.reply.ok(None)
                case m.LoadModel():
                    self.loads.append(message.command.path)
                    self.asked = message.command
                    if self.hold:
                        self.held = message
                    elif self.out_of_memory:
                        self.out_of_memory -= 1
                        message.reply.fail(OutOfMemory("too big"))
                    else:
                        self.up = True
                        message.reply.ok(self.resident())

    def state(self) -> m.EngineState:
        return m.EngineState(
            engine="0",
            info=self.ready if self.up else None,
            incarnation=self.incarnation,
            degraded=False,
            active_bytes=0,
            peak_bytes=0,
            free_bytes=self.free,
        )

    async def told(self) -> frozenset[str]:
        """The models that the scheduler was told of last."""
        message = await self.scheduler_box.receive()
        assert isinstance(message, m.EngineChanged)
        assert not self.scheduler_box._latest, "the newest replaces the older"
        return frozenset(message.status.models)

    def resident(self) -> m.Resident:
        return m.Resident(engine="0", incarnation=self.incarnation, seconds=2.5, weights_bytes=self.weights_bytes)

    def loading(self) -> m.LoadModel:
        assert self.held is not None
        return self.held

    async def acquire(
        self, name: str, model: str, scope: trio.CancelScope | None = None, *, low_ram: bool = False
    ) -> None:
        with scope or trio.CancelScope():
            try:
                request = self.asked_for[name] = m.Acquire(model=model, low_ram=low_ram)
                lease = await self.address.ask(request)
                self.got[name] = lease
            except (ModelNotFound, OutOfMemory, InternalError, EngineDied, ActorGone) as error:
                self.got[name] = type(error)
                self.error = error

    def release(self, name: str) -> None:
        assert isinstance(self.got[name], m.Lease)
        self.address.tell_nowait(m.Release(request=self.asked_for[name]), control=True)

    async def residency(self) -> m.Residency:
        return await self.address.ask(m.GetResidency())


@asynccontextmanager
async def a_loader(
    preload: str | None = None, memory: MemorySettings = ONE
) -> AsyncIterator[tuple[LoaderUnderTest, trio.Nursery]]:
    loader = LoaderUnderTest(preload, memory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loader.generate)
        async with running(loader.actor.run):
            yield loader, nursery
        nursery.cancel_scope.cancel()


def _only(model: str, leases: int) -> m.Residency:
    return m.Residency(model=model, leases=leases, loading=None, models=(model,))


async def test_a_lease_says_what_was_loaded_where_and_at_what_cost() -> None:
    async with a_loader() as (loader, _):
        await loader.acquire("a", "mine")
        assert loader.got["a"] == m.Lease(id=1, engine="0", incarnation=1, model="mine", load_seconds=2.5)
        loader.release("a")
        await loader.acquire("b", "demo")
        assert loader.loads == ["/models/mine", str(EMBEDDED)]


async def test_a_model_loaded_ahead_is_resident_before_any_job_asks_and_not_leased() -> None:
    async with a_loader(preload="mine") as (loader, _):
        await wait_all_tasks_blocked()
        assert await loader.residency() == _only("mine", leases=0)
        await loader.acquire("a", "mine")
        assert loader.loads == ["/models/mine"]


async def test_a_model_that_cannot_be_loaded_ahead_harms_no_job() -> None:
    async with a_loader(preload="flux2-klein-9b") as (loader, _):
        await wait_all_tasks_blocked()
        await loader.acquire("a", "mine")
        assert isinstance(loader.got["a"], m.Lease)


async def test_a_resident_model_is_shared_and_not_loaded_again() -> None:
    async with a_loader() as (loader, _):
        await loader.acquire("a", "mine")
        await loader.acquire("b", "mine")
        assert loader.got["b"] == m.Lease(id=2, engine="0", incarnation=1, model="mine", load_seconds=0.0)
        assert await loader.residency() == _only("mine", leases=2)
        loader.release("a")
        loader.release("b")
        await loader.acquire("c", "mine")
        assert len(loader.loads) == 1


async def test_another_model_waits_until_every_lease_is_back() -> None:
    async with a_loader() as (loader, nursery):
        await loader.acquire("a", "mine")
        await loader.acquire("b", "mine")
        nursery.start_soon(loader.acquire, "c", "other")
        for name in "ab":
            await wait_all_tasks_blocked()
            assert "c" not in loader.got
            loader.release(name)
        await wait_all_tasks_blocked()
        assert "c" in loader.got
        assert await loader.residency() == _only("other", leases=1)
        # A lease that is given back twice gives back no other.
        loader.release("a")
        assert (await loader.residency()).leases == 1


async def test_first_come_first_served() -> None:
    """Also when a later one could have what is resident."""
    async with a_loader() as (loader, nursery):
        await loader.acquire("a", "mine")
        for name, model in [("b", "other"), ("c", "mine"), ("d", "other")]:
            nursery.start_soon(loader.acquire, name, model)
            await wait_all_tasks_blocked()
        for done, expected in [("a", "ab"), ("b", "abc"), ("c", "abcd")]:
            loader.release(done)
            await wait_all_tasks_blocked()
            assert "".join(loader.got) == expected


async def test_job_that_is_cancelled_while_waiting_has_nothing_loaded_for_it() -> None:
    async with a_loader() as (loader, nursery):
        await loader.acquire("a", "mine")
        scope = trio.CancelScope()
        nursery.start_soon(loader.acquire, "b", "other", scope)
        await wait_all_tasks_blocked()
        scope.cancel()
        nursery.start_soon(loader.acquire, "c", "mine")
        await wait_all_tasks_blocked()
        # The resident model serves the next one at once.
        assert "c" in loader.got
        assert loader.loads == ["/models/mine"]


async def test_job_behind_one_that_is_cancelled_while_it_waits_for_room_is_served_at_once() -> None:
    async with a_loader() as (loader, nursery):
        await loader.acquire("a", "mine")

        async def wait_for_room(scope: trio.CancelScope) -> None:
            with scope:
                async with leased(loader.address, m.Acquire(model="other")):
                    raise AssertionError("there is no room")

        scope = trio.CancelScope()
        nursery.start_soon(wait_for_room, scope)
        await wait_all_tasks_blocked()
        nursery.start_soon(loader.acquire, "b", "mine")
        await wait_all_tasks_blocked()
        assert "b" not in loader.got
        scope.cancel()
        await wait_all_tasks_blocked()
        assert isinstance(loader.got["b"], m.Lease)


async def test_job_that_is_cancelled_while_its_model_loads_leaves_no_lease_behind() -> None:
    async with a_loader() as (loader, nursery):
        loader.hold = True
        scope = trio.CancelScope()
        nursery.start_soon(loader.acquire, "a", "mine", scope)
        nursery.start_soon(_later, loader, "b", "other")
        await wait_all_tasks_blocked()
        assert await loader.residency() == m.Residency(model=None, leases=0, loading="mine")
        scope.cancel()
        await wait_all_tasks_blocked()
        loader.hold = False
        loader.loading().reply.ok(loader.resident())
        await wait_all_tasks_blocked()
        assert await loader.residency() == _only("other", leases=1)
        assert "a" not in loader.got


async def _later(loader: LoaderUnderTest, name: str, model: str) -> None:
    await wait_all_tasks_blocked()
    await loader.acquire(name, model)


async def test_a_lease_granted_in_the_moment_its_asker_is_cancelled_is_not_lost() -> None:
    for turns in range(100):
        async with a_loader() as (loader, nursery):
            scope = trio.CancelScope()
            nursery.start_soon(loader.acquire, "a", "mine", scope)
            await checkpoints(turns % 25)
            scope.cancel()
            await wait_all_tasks_blocked()
            assert (await loader.residency()).leases == ("a" in loader.got)


@pytest.mark.parametrize("up", [True, False])
async def test_a_dead_childs_model_is_loaded_again_and_its_leases_hold_no_job_up(up: bool) -> None:
    async with a_loader() as (loader, _):
        await loader.acquire("a", "mine")
        loader.up, loader.incarnation = up, 2
        await loader.acquire("b", "mine")
        assert loader.got["b"] == m.Lease(id=2, engine="0", incarnation=2, model="mine", load_seconds=2.5)
        assert (await loader.residency()).leases == 1
        loader.release("a")
        assert (await loader.residency()).leases == 1
        loader.incarnation = 3
        await loader.acquire("c", "other")
        assert len(loader.loads) == 3


@pytest.mark.parametrize("error", [OutOfMemory("too big"), EngineDied("killed")])
async def test_a_load_that_fails_is_its_askers_error_and_the_next_one_is_served(error: Exception) -> None:
    async with a_loader() as (loader, nursery):
        loader.hold = True
        nursery.start_soon(loader.acquire, "a", "mine")
        await wait_all_tasks_blocked()
        nursery.start_soon(loader.acquire, "b", "mine")
        await wait_all_tasks_blocked()
        loader.hold = False
        loader.loading().reply.fail(error)
        await wait_all_tasks_blocked()
        assert loader.got["a"] is type(error)
        assert isinstance(loader.got["b"], m.Lease)
        assert len(loader.loads) == 2


async def test_after_a_load_that_failed_nothing_counts_as_resident() -> None:
    """There was room for one: the old model had to go before the new one was loaded."""
    async with a_loader() as (loader, nursery):
        await loader.acquire("a", "mine")
        loader.release("a")
        loader.hold = True
        nursery.start_soon(loader.acquire, "b", "other")
        await wait_all_tasks_blocked()
        loader.loading().reply.fail(OutOfMemory("too big"))
        loader.hold = False
        await wait_all_tasks_blocked()
        assert (await loader.residency()).model is None
        await loader.acquire("c", "mine")
        assert len(loader.loads) == 3


async def test_an_unknown_model_is_its_askers_error_and_leaves_the_resident_one_alone() -> None:
    async with a_loader() as (loader, _):
        await loader.acquire("a", "mine")
        loader.release("a")
        await loader.acquire("b", "nonsense")
        assert loader.got["b"] is ModelNotFound
        assert (await loader.residency()).model == "mine"


async def test_a_generator_that_is_restarted_in_the_middle_of_a_load_is_its_askers_error() -> None:
    async with a_loader() as (loader, nursery):
        loader.hold = True
        nursery.start_soon(loader.acquire, "a", "mine")
        await wait_all_tasks_blocked()
        nursery.start_soon(loader.acquire, "b", "other")
        await wait_all_tasks_blocked()
        loader.hold = False
        loader.generator_box.fail_in_flight()
        await wait_all_tasks_blocked()
        assert loader.got["a"] is ActorGone
        assert isinstance(loader.got["b"], m.Lease)
        assert await loader.residency() == _only("other", leases=1)


async def test_a_restarted_loader_begins_as_new_and_knows_no_old_lease() -> None:
    loader = LoaderUnderTest()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loader.generate)
        async with running(loader.actor.run):
            await loader.acquire("a", "mine")
            nursery.start_soon(loader.acquire, "b", "other")
            await wait_all_tasks_blocked()
        loader.loader_box.fail_in_flight()
        await wait_all_tasks_blocked()
        assert loader.got["b"] is ActorGone
        async with running(loader.actor.run):
            assert await loader.residency() == m.Residency(model=None, leases=0, loading=None)
            await loader.acquire("c", "other")
            loader.release("a")
            assert (await loader.residency()).leases == 1
        nursery.cancel_scope.cancel()


async def test_a_model_that_is_being_loaded_is_held_and_another_is_not() -> None:
    async with a_loader() as (loader, nursery):
        loader.hold = True
        nursery.start_soon(loader.acquire, "a", "mine")
        await wait_all_tasks_blocked()
        with pytest.raises(ModelInUse):
            await loader.address.ask(m.Evict(model="mine"))
        await loader.address.ask(m.Evict(model="other"))
        loader.loading().reply.ok(loader.resident())
        await wait_all_tasks_blocked()
        assert isinstance(loader.got["a"], m.Lease)


async def test_the_scheduler_gets_the_newest_word_on_the_engine_however_full_its_lanes_are() -> None:
    async with a_loader() as (loader, _):
        await loader.told()
        fill(loader.scheduler_box, m.Drain())
        await loader.acquire("a", "mine")
        assert await loader.told() == frozenset({"mine"})


async def test_a_defect_in_a_load_fails_its_request_and_the_next_one_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> tuple[int, bool]:
        raise ZeroDivisionError("injected")

    async with a_loader() as (loader, _):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBudget, "require", defective)
            await loader.acquire("a", "mine")
        assert loader.got["a"] is InternalError
        assert "injected" not in str(loader.error)
        await loader.acquire("b", "mine")
        assert isinstance(loader.got["b"], m.Lease)


# --- memory ---

ROOMY = MemorySettings(budget_gb=1.5)


async def _use(loader: LoaderUnderTest, model: str, *, low_ram: bool = False) -> None:
    """A job on that model, from beginning to end."""
    name = f"{model} {len(loader.got)}"
    await loader.acquire(name, model, low_ram=low_ram)
    loader.release(name)
    await wait_all_tasks_blocked()


async def test_models_stay_while_they_fit_and_the_least_recently_used_goes_first() -> None:
    async with a_loader(memory=ROOMY) as (loader, _):
        for model in ("small", "tiny", "small"):
            await _use(loader, model)
        assert await loader.told() == frozenset({"small", "tiny"})
        await _use(loader, "mine")
        assert loader.unloads == ["tiny"]
        assert (await loader.residency()).models == ("mine", "small")
        assert await loader.told() == frozenset({"mine", "small"})
        await _use(loader, "other")
        assert loader.unloads == ["tiny", "small", "mine"]
        assert len(loader.loads) == 4


async def test_a_leased_model_is_never_evicted() -> None:
    async with a_loader(memory=ROOMY) as (loader, nursery):
        await loader.acquire("a", "small")
        await _use(loader, "tiny")
        await _use(loader, "mine")
        assert loader.unloads == ["tiny"]
        nursery.start_soon(loader.acquire, "b", "other")
        await wait_all_tasks_blocked()
        assert loader.unloads == ["tiny", "mine"]
        assert isinstance(loader.got["b"], m.Lease)
        assert set((await loader.residency()).models) == {"other", "small"}


async def test_a_model_that_cannot_fit_is_refused_before_anything_is_touched() -> None:
    async with a_loader(memory=ROOMY) as (loader, _):
        await _use(loader, "small")
        await loader.acquire("a", "huge")
        assert loader.got["a"] is OutOfMemory
        assert isinstance(loader.error, OutOfMemory)
        assert loader.error.details == {
            "model": "huge",
            "needed_gb": 5.0,
            "available_gb": 1.5,
            "suggestion": "Use flux2-klein-4b-mlx-4bit or set low_ram=true",
        }
        assert loader.error.message.startswith("Insufficient memory: 'huge' needs 5.0 GB")
        assert loader.unloads == []
        assert len(loader.loads) == 1
        assert (await loader.residency()).models == ("small",)


async def test_low_ram_needs_room_for_its_largest_component_alone() -> None:
    async with a_loader(memory=ROOMY) as (loader, _):
        await loader.acquire("a", "huge", low_ram=True)
        assert isinstance(loader.got["a"], m.Lease)
        assert loader.asked.component_offload
        loader.release("a")
        # What is there in stages is not there for a job that wants it whole.
        await loader.acquire("b", "huge")
        assert loader.got["b"] is OutOfMemory
        await _use(loader, "small")
        await _use(loader, "small", low_ram=True)
        assert len(loader.loads) == 2
        await _use(loader, "small")
        assert len(loader.loads) == 3
        assert not loader.asked.component_offload


async def test_dev_takes_turns_where_it_does_not_fit_whole_and_is_refused_with_its_sizes_where_not_even_that_fits() -> (
    None
):
    async with a_loader(memory=MemorySettings(budget_gb=3.0)) as (loader, _):
        await loader.acquire("whole", "dev")
        assert isinstance(lease := loader.got["whole"], m.Lease)
        assert not lease.alternating_offload
        assert not loader.asked.component_offload
    async with a_loader(memory=MemorySettings(budget_gb=2.1)) as (loader, _):
        await _use(loader, "tiny")
        await loader.acquire("turns", "dev")
        assert isinstance(lease := loader.got["turns"], m.Lease)
        assert lease.alternating_offload
        assert loader.asked.component_offload
        assert loader.unloads == []
        loader.release("turns")
        # It is as much there as it can be: the next job loads nothing.
        await loader.acquire("again", "dev")
        assert isinstance(lease := loader.got["again"], m.Lease)
        assert lease.alternating_offload
        assert len(loader.loads) == 2
        loader.release("again")
        await _use(loader, "mine")
        assert loader.unloads == ["tiny", "dev"]
    async with a_loader(memory=MemorySettings(budget_gb=1.7)) as (loader, _):
        await loader.acquire("refused", "dev")
        assert isinstance(loader.error, OutOfMemory)
        assert (loader.error.details["needed_gb"], loader.error.details["available_gb"]) == (1.8, 1.7)
        await loader.acquire("low", "dev", low_ram=True)
        assert isinstance(lease := loader.got["low"], m.Lease)
        assert not lease.alternating_offload


async def test_the_default_budget_is_what_the_device_has() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, _):
        loader.ready = attrs.evolve(READY, memory_bytes=int(5.8e9))
        await loader.acquire("a", "huge")
        assert loader.got["a"] is OutOfMemory
        loader.ready = attrs.evolve(READY, memory_bytes=int(5.9e9))
        await _use(loader, "huge")
        # On a CPU other programs live in the same memory.
        loader.incarnation = 2
        loader.free = int(4.9e9)
        await loader.acquire("b", "huge")
        assert loader.got["b"] is OutOfMemory
        loader.free = int(5.1e9)
        await _use(loader, "huge")
        loader.free = int(0.4e9)
        await _use(loader, "mine")
        assert loader.unloads == ["huge"]


async def test_out_of_memory_on_a_cpu_is_not_final_while_an_old_reading_says_so() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, _):
        loader.ready = attrs.evolve(READY, memory_bytes=int(8e9))
        loader.free, loader.free_at_rest = int(1e9), int(6e9)
        await loader.acquire("a", "huge")
        assert isinstance(loader.got["a"], m.Lease)
        assert loader.measured == 1
        await loader.acquire("b", "small")
        assert loader.measured == 1, "what fits is not measured again"


async def test_engine_that_dies_before_a_model_is_loaded_is_no_death_of_the_job_that_waits() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, _):
        loader.ready = attrs.evolve(READY, memory_bytes=int(8e9))
        loader.free, loader.free_at_rest, loader.deaths_at_rest = int(1e9), int(6e9), 1
        await loader.acquire("a", "huge")
        assert isinstance(lease := loader.got["a"], m.Lease)
        assert lease.incarnation == 2


async def test_memory_that_runs_hold_is_waited_for_before_a_model_is_refused() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, nursery):
        loader.ready = attrs.evolve(READY, memory_bytes=int(8e9))
        loader.free, loader.free_at_rest = int(1e9), int(6e9)
        await loader.acquire("running", "small")
        nursery.start_soon(loader.acquire, "a", "huge")
        await wait_all_tasks_blocked()
        assert "a" not in loader.got
        loader.release("running")
        await wait_all_tasks_blocked()
        assert isinstance(loader.got["a"], m.Lease)


async def test_asker_that_is_cancelled_while_memory_is_waited_for_holds_no_other_up() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, nursery):
        loader.ready = attrs.evolve(READY, memory_bytes=int(8e9))
        loader.free = int(1e9)
        await loader.acquire("running", "small")
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_all_wait, scope)
            async with leased(loader.address, m.Acquire(model="huge")):
                raise AssertionError("there is no room")
        await loader.acquire("b", "small")
        assert isinstance(loader.got["b"], m.Lease)
        assert loader.measured == 0


async def _cancel_when_all_wait(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_model_that_is_larger_than_the_device_is_refused_at_once() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, _):
        loader.ready = attrs.evolve(READY, memory_bytes=int(5.8e9))
        loader.free = int(1e9)
        await loader.acquire("running", "small")
        await loader.acquire("a", "huge")
        assert loader.got["a"] is OutOfMemory
        assert loader.measured == 0


async def test_an_old_reading_makes_no_model_take_turns_that_has_room_as_a_whole() -> None:
    async with a_loader(memory=MemorySettings()) as (loader, _):
        loader.ready = attrs.evolve(READY, memory_bytes=int(8e9))
        loader.free, loader.free_at_rest = int(2e9), int(6e9)
        await loader.acquire("a", "dev")
        assert isinstance(lease := loader.got["a"], m.Lease)
        assert not lease.alternating_offload


async def test_an_idle_model_is_unloaded_after_its_time_and_a_leased_one_is_not(autojump_clock: MockClock) -> None:
    memory = MemorySettings(budget_gb=1.5, idle_unload_seconds=60.0)
    async with a_loader(memory=memory) as (loader, _):
        await loader.acquire("a", "small")
        await trio.sleep(30)
        await _use(loader, "tiny")
        await trio.sleep(59)
        assert loader.unloads == []
        await trio.sleep(2)
        assert loader.unloads == ["tiny"]
        assert await loader.told() == frozenset({"small"})
        loader.release("a")
        await trio.sleep(59)
        assert loader.unloads == ["tiny"]
        await trio.sleep(2)
        assert loader.unloads == ["tiny", "small"]
        assert (await loader.residency()).model is None
        await _use(loader, "small")
        assert len(loader.loads) == 3


async def test_when_the_device_refuses_what_should_have_fitted_the_others_go_and_it_is_tried_again() -> None:
    async with a_loader(memory=ROOMY) as (loader, _):
        await _use(loader, "small")
        await _use(loader, "tiny")
        loader.out_of_memory = 1
        await _use(loader, "mine")
        # The first made the room that was thought to be enough.
        assert loader.unloads == ["small", "tiny"]
        loader.out_of_memory = 2
        await loader.acquire("a", "small")
        assert loader.got["a"] is OutOfMemory
        assert isinstance(loader.error, OutOfMemory)
        assert "suggestion" in loader.error.details


async def test_a_quantized_model_is_loaded_with_its_bits_and_a_place_to_keep_it() -> None:
    async with a_loader(memory=MemorySettings(budget_gb=30.0)) as (loader, _):
        await _use(loader, "flux2-klein-4b-3-bit")
        assert (loader.asked.path, loader.asked.bits) == ("/models/flux2-klein-4b", 3)
        assert loader.asked.entry == "/cache/quantized/flux2-klein-4b-3-bit"
        await _use(loader, "flux2-klein-4b")
        assert (loader.asked.bits, loader.asked.entry) == (None, "")


@pytest.mark.parametrize(
    ("device", "budget_gb", "expected"),
    [("cuda", 4.0, True), ("cuda", 3.9, False), ("metal", 4.0, False), ("cpu", 4.0, False)],
)
async def test_quantized_weights_are_kept_unpacked_on_cuda_within_half_of_the_budget(
    device: str, budget_gb: float, expected: bool
) -> None:
    """Whatever else is in memory: the same settings always decide the same."""
    for others in ((), ("mine", "other")):
        async with a_loader(memory=MemorySettings(budget_gb=budget_gb)) as (loader, _):
            loader.ready = attrs.evolve(READY, device=device, precision="float32" if device == "cpu" else "bfloat16")
            for other in others:
                await _use(loader, other)
            await _use(loader, "flux2-klein-4b-4-bit")
            assert loader.asked.unpack is expected


async def test_unpacked_model_counts_with_what_the_engine_says_that_it_takes() -> None:
    async with a_loader(memory=MemorySettings(budget_gb=4.0)) as (loader, _):
        loader.ready = attrs.evolve(READY, device="cuda", precision="bfloat16")
        await _use(loader, "mine")
        await _use(loader, "other")
        await _use(loader, "flux2-klein-4b-4-bit")
        assert loader.unloads == []
        loader.weights_bytes = int(2.1e9)
        loader.incarnation = 2
        await _use(loader, "flux2-klein-4b-4-bit")
        loader.weights_bytes = 0
        await _use(loader, "mine")
        await _use(loader, "other")
        assert loader.unloads == ["flux2-klein-4b-4-bit"]


async def test_low_ram_run_of_an_unpacked_model_is_packed_and_the_next_whole_one_is_not() -> None:
    async with a_loader(memory=MemorySettings(budget_gb=4.0)) as (loader, _):
        loader.ready = attrs.evolve(READY, device="cuda", precision="bfloat16")
        await _use(loader, "flux2-klein-4b-4-bit", low_ram=True)
        assert (loader.asked.component_offload, loader.asked.unpack) == (True, False)
        await _use(loader, "flux2-klein-4b-4-bit")
        assert (loader.asked.component_offload, loader.asked.unpack) == (False, True)
        await _use(loader, "flux2-klein-4b-4-bit", low_ram=True)
        await _use(loader, "flux2-klein-4b-4-bit")
        assert (loader.asked.component_offload, loader.asked.unpack) == (False, True)
        assert len(loader.loads) == 3


async def test_unpacked_model_that_the_device_refuses_is_loaded_packed_before_others_have_to_go() -> None:
    async with a_loader(memory=MemorySettings(budget_gb=4.0)) as (loader, _):
        loader.ready = attrs.evolve(READY, device="cuda", precision="bfloat16")
        await _use(loader, "mine")
        loader.out_of_memory = 1
        await _use(loader, "flux2-klein-4b-4-bit")
        assert not loader.asked.unpack
        assert loader.unloads == []


_STEPS = st.tuples(st.sampled_from(["acquire", "release", "cancel", "die", "turns"]), st.integers(0, 5))


@settings(max_examples=80, deadline=None)
@given(st.lists(_STEPS, max_size=30))
def test_leases_are_on_one_model_at_a_time_and_every_job_is_served_in_the_end(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        scopes: dict[str, trio.CancelScope] = {}
        held: set[str] = set()
        async with a_loader() as (loader, nursery):

            def settle() -> set[str]:
                leases = {name: lease for name, lease in loader.got.items() if isinstance(lease, m.Lease)}
                open_ = {name for name in leases if name not in held and leases[name].incarnation == loader.incarnation}
                assert len({leases[name].model for name in open_}) <= 1
                return open_

            for number, (step, choice) in enumerate(steps):
                match step:
                    case "acquire":
                        scopes[str(number)] = trio.CancelScope()
                        model = ("mine", "other")[choice % 2]
                        nursery.start_soon(loader.acquire, str(number), model, scopes[str(number)])
                    case "release":
                        for name in sorted(settle())[:choice]:
                            loader.release(name)
                            held.add(name)
                    case "cancel" if scopes:
                        sorted(scopes.items())[choice % len(scopes)][1].cancel()
                    case "die":
                        loader.incarnation += 1
                    case "turns":
                        await checkpoints(choice)
                settle()
            while True:
                await wait_all_tasks_blocked()
                settle()
                # Every job that holds a lease gives it back, also one on an engine that died.
                still = {name for name, got in loader.got.items() if isinstance(got, m.Lease)} - held
                if not still:
                    break
                for name in still:
                    loader.release(name)
                    held.add(name)
            await loader.acquire("last", "demo")
            assert await loader.residency() == _only("demo", leases=1)
            wanted = {name for name, scope in scopes.items() if not scope.cancel_called}
            assert wanted <= set(loader.got)
            assert all(isinstance(got, m.Lease) for got in loader.got.values())

    run_mocked(main)
