"""One attempt at a job: what it leaves with the actors of its engine."""

from mflux_api.actors import messages as m
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.actors.scheduler.job_runner import _Attempt
from mflux_api.jobs.progress import ProgressTracker
from tests.support.crew import a_job, fill


def test_lease_is_given_back_however_full_the_loaders_lanes_are() -> None:
    loader: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
    generator: Mailbox[m.GeneratorMessage] = Mailbox(m.GENERATOR)
    fill(loader, m.GetResidency())
    job = a_job()
    lease = m.Lease(id=7, engine="0", incarnation=1, model="demo", load_seconds=0.0)
    to = EngineAddresses(
        loader=Address(loader, sender=m.SCHEDULER, asks=m.ASK_GRAPH),
        generator=Address(generator, sender=m.SCHEDULER, asks=m.ASK_GRAPH),
    )
    attempt = _Attempt(job, lease, to, ProgressTracker(job), [], lambda _: None)
    attempt.release()
    attempt.release()
    assert loader._next() == m.Release(lease_id=7)
    assert isinstance(loader._next(), m.GetResidency)
