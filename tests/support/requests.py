"""Requests as jobs have them, for tests that say only what they are about."""

from typing import Any

from mflux_api.jobs.resolve import ResolvedRequest


def resolved_request(**fields: Any) -> ResolvedRequest:
    """What a job runs; what is not named is the smallest thing that works."""
    usual: dict[str, Any] = {
        "prompt": "a cat",
        "model": "demo",
        "seed": 1,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance": 1.0,
    }
    return ResolvedRequest(**{**usual, **fields})
