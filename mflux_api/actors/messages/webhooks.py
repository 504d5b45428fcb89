"""What the webhooks actor is told and asked."""

import attrs

from mflux_api.actors.mailbox import Ask
from mflux_api.jobs.job import Job


@attrs.frozen(kw_only=True)
class DeliveryDue:
    """A job has ended, that is committed, and its webhook is to be delivered."""

    job: Job


@attrs.frozen(kw_only=True)
class DrainDeliveries(Ask[None]):
    """Begin no more deliveries; the answer comes when none is under way any more."""


WebhooksMessage = DeliveryDue | DrainDeliveries
