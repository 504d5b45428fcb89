"""A typed client of a running server, for programs that do not embed: :class:`Client`, :class:`AsyncClient`.

::

    with Client("http://localhost:7861") as client:
        job = client.generate(GenerateRequest(prompt="a red house", model="demo"))
        Path("house.png").write_bytes(client.image(job.id))

:class:`AsyncClient` has the same methods for asyncio and Trio. What the server refuses is raised as the class of
``mflux_api.errors`` that the server raised; what lies between is a :class:`ServerUnreachable`. Each method of both is a
call of ``calls``, which knows the routes and sends nothing.
"""

from mflux_api.client.answers import (
    ActiveJob,
    BulkCancel,
    CancelOutcome,
    Event,
    Finished,
    Health,
    Job,
    JobPage,
    JobResult,
    Lora,
    LoraList,
    ModelInfo,
    ModelStatus,
    PartialImage,
    Queue,
    QueuedJob,
    SkippedLora,
    Submitted,
    WebhookStatus,
)
from mflux_api.client.async_client import AsyncClient
from mflux_api.client.errors import ServerUnreachable, UnexpectedAnswer
from mflux_api.client.sync_client import Client
from mflux_api.jobs.progress import Progress
from mflux_api.jobs.request import Extend, GenerateRequest

__all__ = [
    "ActiveJob",
    "AsyncClient",
    "BulkCancel",
    "CancelOutcome",
    "Client",
    "Event",
    "Extend",
    "Finished",
    "GenerateRequest",
    "Health",
    "Job",
    "JobPage",
    "JobResult",
    "Lora",
    "LoraList",
    "ModelInfo",
    "ModelStatus",
    "PartialImage",
    "Progress",
    "Queue",
    "QueuedJob",
    "ServerUnreachable",
    "SkippedLora",
    "Submitted",
    "UnexpectedAnswer",
    "WebhookStatus",
]
