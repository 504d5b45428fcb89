"""A serving process that does all that it does with images, and then says which forbidden modules it has imported.

Run as ``python -m tests.support.serving_process FOLDER`` with an image as base64 on standard input.
"""

import json
import sys
from pathlib import Path

import httpx
import trio

from mflux_api.service import open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import settings
from tests.support.safetensors_bytes import safetensors_bytes
from tests.support.scripted_engine import Script

FORBIDDEN = {"PIL", "numpy", "mlx", "mflux", "transformers", "huggingface_hub"}


async def main(folder: Path, image: str) -> None:
    options = settings(folder)
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with (
            open_service(options, repository=repository, start_engine=Script().start) as service,
            trio.open_nursery() as nursery,
        ):
            (url,) = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                fields = {"prompt": "a lake", "model": "demo", "steps": 1, "width": 64, "height": 64}
                job = (await http.post("/api/v1/generate", json=fields | {"init_images": [image]})).json()["job_id"]
                await service.result(job)
                answers = [
                    await http.post("/sdapi/v1/txt2img", json=fields),
                    await http.post("/sdapi/v1/img2img", json=fields | {"init_images": [image]}),
                    await http.get(f"/api/v1/jobs/{job}/images/0?format=jpeg"),
                    await http.get(f"/api/v1/jobs/{job}/images/0?format=webp"),
                    await http.post("/sdapi/v1/extra-single-image", json={"image": image, "upscaler_1": "Lanczos"}),
                    await http.post("/api/v1/loras?name=ink", content=safetensors_bytes()),
                    await http.get("/api/v1/loras"),
                    await http.post("/sdapi/v1/img2img", json=fields | {"init_images": ["aGk="]}),
                ]
            nursery.cancel_scope.cancel()
    result = {"statuses": [each.status_code for each in answers], "imported": sorted(FORBIDDEN & set(sys.modules))}
    print(json.dumps(result))  # noqa: T201 - its only output


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.stdin.read())
