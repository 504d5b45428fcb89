"""FLUX.2 Klein image generation as a supervised service, for HTTP clients and for Trio programs.

::

    async with mflux_api.open_service() as service:
        job = await service.submit(mflux_api.GenerateRequest(prompt="a red house", model="demo"))
        result = await service.result(job.id)

The names below are the whole public API. They are imported on first use, because the engine child imports this
package too and needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mflux_api.config import Settings, load_settings
    from mflux_api.errors import ConfigError, JobCancelled, ServiceError, ServiceFailed
    from mflux_api.gateway.listings import DownloadView, JobList, LoraView, ModelView
    from mflux_api.jobs.job import Job, Stage, Status, StoredImage, Timings
    from mflux_api.jobs.progress import Finished, JobEvent, PartialImage, Progress, StreamEvent
    from mflux_api.jobs.request import Extend, GenerateRequest
    from mflux_api.jobs.search import JobFilter
    from mflux_api.jobs.webhook import Webhook
    from mflux_api.service import Result, Service, open_service

__all__ = [
    "ConfigError",
    "DownloadView",
    "Extend",
    "Finished",
    "GenerateRequest",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobFilter",
    "JobList",
    "LoraView",
    "ModelView",
    "PartialImage",
    "Progress",
    "Result",
    "Service",
    "ServiceError",
    "ServiceFailed",
    "Settings",
    "Stage",
    "Status",
    "StoredImage",
    "StreamEvent",
    "Timings",
    "Webhook",
    "load_settings",
    "open_service",
]

_HOMES = {
    "config": ("Settings", "load_settings"),
    "errors": ("ConfigError", "JobCancelled", "ServiceError", "ServiceFailed"),
    "gateway.listings": ("DownloadView", "JobList", "LoraView", "ModelView"),
    "jobs.job": ("Job", "Stage", "Status", "StoredImage", "Timings"),
    "jobs.progress": ("Finished", "JobEvent", "PartialImage", "Progress", "StreamEvent"),
    "jobs.request": ("Extend", "GenerateRequest"),
    "jobs.webhook": ("Webhook",),
    "jobs.search": ("JobFilter",),
    "service": ("Result", "Service", "open_service"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"mflux_api.{module}"), name)
    raise AttributeError(f"module 'mflux_api' has no attribute '{name}'")
