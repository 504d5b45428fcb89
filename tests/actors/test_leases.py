"""Leases over a whole service: whatever becomes of those who asked, none stays behind."""

import random
from pathlib import Path

import pytest
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.leasing import leased
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.catalog import Model
from mflux_api.service import Service
from tests.support.crew import checkpoints, fill
from tests.support.harness import eventually, gateway, request, scripted_service
from tests.support.scripted_engine import Script


def model(service: Service, alias: str) -> Model:
    found = gateway(service).catalog.get(alias)
    assert found is not None
    return found


async def leases(service: Service) -> int:
    (view,) = await gateway(service).engines()
    assert view.residency is not None
    return view.residency.leases


async def test_300_load_calls_cancelled_at_random_moments_leave_no_lease(tmp_path: Path) -> None:
    rng = random.Random(15)
    async with scripted_service(tmp_path, Script()) as service, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(300)]

        async def load(scope: trio.CancelScope) -> None:
            with scope:
                await gateway(service).load_model(model(service, rng.choice(["demo", "demo-base"])))

        async def cancel_at_random(scope: trio.CancelScope) -> None:
            nursery.start_soon(load, scope)
            await checkpoints(rng.randrange(120))
            if rng.random() < 0.5:
                await trio.sleep(rng.random() * 0.02)
            scope.cancel()

        for scope in scopes:
            nursery.start_soon(cancel_at_random, scope)
            await checkpoints(rng.randrange(4))
        await eventually(lambda: all(scope.cancel_called for scope in scopes))

        async def all_back() -> bool:
            return await leases(service) == 0

        await eventually(all_back)
        for alias in ("demo", "demo-base"):
            await gateway(service).unload_model(model(service, alias))


async def test_jobs_cancelled_at_random_moments_leave_no_lease(tmp_path: Path) -> None:
    rng = random.Random(5)
    async with scripted_service(tmp_path, Script()) as service:
        for seed in range(60):
            job = await service.submit(request(seed))
            await checkpoints(rng.randrange(200))
            await service.cancel(job.id)

        async def all_back() -> bool:
            return await leases(service) == 0

        await eventually(all_back)
        await gateway(service).unload_model(model(service, "demo"))


def a_lease() -> m.Lease:
    return m.Lease(id=1, engine="0", incarnation=1, model="demo", load_seconds=0.0)


async def test_lease_granted_to_an_asker_that_is_cancelled_in_that_moment_is_given_back() -> None:
    mailbox: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
    loader = Address(mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
    held = False

    async def hold() -> None:
        nonlocal held
        async with leased(loader, m.Acquire(model="demo")):
            held = True
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        acquire = await mailbox.receive()
        assert isinstance(acquire, m.Acquire)
        acquire.reply.ok(a_lease())
        nursery.cancel_scope.cancel()
    release = await mailbox.receive()
    assert isinstance(release, m.Release)
    assert release.request is acquire


@pytest.mark.parametrize("turns", range(6))
async def test_asker_that_goes_before_its_lease_is_granted_says_so(turns: int) -> None:
    mailbox: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
    loader = Address(mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
    acquire = m.Acquire(model="demo")

    async def hold() -> None:
        async with leased(loader, acquire):
            raise AssertionError("no lease was granted")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await checkpoints(turns)
        nursery.cancel_scope.cancel()
    release = await mailbox.receive()
    assert isinstance(release, m.Release)
    assert release.request is acquire


async def test_lease_is_given_back_however_full_the_loaders_lanes_are() -> None:
    mailbox: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
    loader = Address(mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH)
    acquire = m.Acquire(model="demo")
    async with trio.open_nursery() as nursery:

        async def grant() -> None:
            await mailbox.receive()
            acquire.reply.ok(a_lease())

        nursery.start_soon(grant)
        async with leased(loader, acquire):
            fill(mailbox, m.GetResidency())
    assert mailbox._next() == m.Release(request=acquire)
    assert isinstance(mailbox._next(), m.GetResidency)
