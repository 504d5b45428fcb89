"""Bodies for routes that take one, to be sent as they stand: ``/openapi.json`` has them, ``/docs`` begins with them."""

from collections.abc import Mapping
from typing import Any, Final

_IMAGE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAAA1BMVEUAAACnej3aAAAAD0lEQVR42mNgGAWjgHwAAAJAAAHgTR1EAAAAAElFTkSu"
    "QmCC"
)
"""A black PNG of 64 × 64 pixels: short enough to be read over."""
_PROMPT: Final = "a red house on the left, green hills"

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "/api/v1/generate": {"prompt": _PROMPT, "model": "demo", "width": 256, "height": 256, "steps": 4, "seed": 1},
    "/api/v1/images/info": {"image": _IMAGE},
    # What a reader sends without a change must not end anything that is not meant.
    "/api/v1/jobs/cancel": {"status": "queued", "q": _PROMPT},
    "/api/v1/jobs/prune": {"older_than_hours": 720, "dry_run": True},
    "/api/v1/session": {},
    "/v1/images/generations": {
        "prompt": _PROMPT,
        "model": "demo",
        "n": 1,
        "size": "256x256",
        "response_format": "b64_json",
    },
    "/v1/images/edits": {
        "prompt": _PROMPT,
        "model": "demo",
        "images": [{"image_url": f"data:image/png;base64,{_IMAGE}"}],
    },
    "/sdapi/v1/txt2img": {"prompt": _PROMPT, "model": "demo", "width": 256, "height": 256, "steps": 4, "seed": 1},
    "/sdapi/v1/img2img": {
        "prompt": _PROMPT,
        "model": "demo",
        "init_images": [_IMAGE],
        "denoising_strength": 0.6,
        "steps": 4,
    },
    "/sdapi/v1/options": {"sd_model_checkpoint": "demo"},
    "/sdapi/v1/png-info": {"image": _IMAGE},
    "/internal/progress": {"id_task": "task(1)", "live_preview": False},
    "/login": {"username": "", "password": ""},
}
