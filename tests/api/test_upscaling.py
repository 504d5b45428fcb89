"""SeedVR2 over HTTP, on a random checkpoint of its layout: as a model of requests, and behind A1111's extras."""

import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.api_jobs import wait_for_end
from tests.support.sample_images import scene, to_base64, to_image
from tests.support.server import Server, api_client, serving

pytestmark = pytest.mark.slow

CONFIG = """
[models]
default = "demo"
auto_download = false

[[models.custom]]
name = "seedvr2"
base = "seedvr2"
path = "seedvr2"
"""

SOURCE = to_base64(scene((48, 32)))
UPSCALE: dict[str, Any] = {"model": "seedvr2", "init_images": [SOURCE], "seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.upscaler_checkpoint import write_upscaler

    folder = tmp_path_factory.mktemp("upscaling")
    write_upscaler(folder / "seedvr2")
    with serving(folder, CONFIG) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with api_client(server.url) as connected:
        yield connected


def post(client: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(f"/sdapi/v1/{path}", json=fields)
    assert answer.status_code == 200, answer.text[:300]
    body: dict[str, Any] = answer.json()
    return body


def events(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    url = f"/api/v1/jobs/{job_id}/stream"
    with client.stream("GET", url, headers={"Last-Event-ID": "x"}) as stream:
        return [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]


def test_img2img_needs_no_prompt_and_says_what_ran(client: httpx.Client) -> None:
    answer = post(client, "img2img", **UPSCALE, steps=9, width=512, height=512)
    (image,) = answer["images"]
    assert to_image(image).size == (96, 64)
    expected = {
        "model": "seedvr2",
        "prompt": "",
        "width": 96,
        "height": 64,
        "steps": 1,
        "resolution": 64,
        "softness": 0,
    }
    assert answer["parameters"].items() >= expected.items()
    written = Image.open(BytesIO(base64.b64decode(image))).info["parameters"]
    assert "Postprocess upscaler: seedvr2" in written
    assert post(client, "img2img", **UPSCALE)["images"] == [image]


def test_softness_resolution_and_seed_have_an_effect(client: httpx.Client) -> None:
    made = [
        to_image(post(client, "img2img", **{**UPSCALE, "resolution": 48, **fields})["images"][0])
        for fields in ({}, {"softness": 0.5}, {"seed": 2}, {"low_ram": True})
    ]
    assert {image.size for image in made} == {(72, 48)}
    assert len({image.tobytes() for image in made}) == 3
    assert made[0].tobytes() == made[3].tobytes()


def test_a1111s_img2img_upscales_too(client: httpx.Client) -> None:
    answer = post(
        client, "img2img", **UPSCALE, sampler_name="Euler", cfg_scale=7, denoising_strength=0.4, upscale="1.5"
    )
    info = json.loads(answer["info"])
    assert (info["width"], info["height"], info["sd_model_name"]) == (72, 48, "seedvr2")


def test_job_goes_through_its_stages_to_one_end_with_an_image_for_each_seed(client: httpx.Client) -> None:
    job_id = client.post("/api/v1/generate", json={**UPSCALE, "num_images": 2}).json()["job_id"]
    seen = events(client, job_id)
    stages = [event["stage"] for event in seen[:-1]]
    once = ["encoding", "denoising", "decoding", "saving"]
    assert [stage for stage, before in zip(stages, ["", *stages], strict=False) if stage != before] == [
        "queued",
        "loading",
        *once,
        *once,
    ]
    progress = [event["progress"] for event in seen]
    assert progress == sorted(progress)
    assert progress[-2:] == [1.0, 1.0]
    assert {event["steps"] for event in seen[:-1]} == {1}
    assert seen[-1]["result"]["seeds"] == [1, 2]
    assert [to_image(text).size for text in seen[-1]["result"]["images"]] == [(96, 64)] * 2


def test_cancel_ends_it_between_two_tiles_and_the_same_engine_goes_on(server: Server, client: httpx.Client) -> None:
    engines = [child.pid for child in server.children()]
    large = to_base64(Image.effect_noise((112, 112), 50))
    body = {**UPSCALE, "init_images": [large], "num_images": 4}
    job_id = client.post("/api/v1/generate", json=body).json()["job_id"]
    with client.stream("GET", f"/api/v1/jobs/{job_id}/stream") as stream:
        lines = stream.iter_lines()
        assert any('"encoding"' in line for line in lines)
        assert client.delete(f"/api/v1/jobs/{job_id}").json() == {"status": "cancelled"}
        assert any(line == "event: cancelled" for line in lines)
    assert post(client, "img2img", **UPSCALE)["images"]
    assert [child.pid for child in server.children()] == engines


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("/sdapi/v1/txt2img", {}, "init_images"),
        ("/sdapi/v1/img2img", {"init_images": []}, "init_images"),
        ("/api/v1/generate", {"init_images": None, "prompt": "a lake"}, "init_images"),
        ("/api/v1/generate", {"init_images": [SOURCE, SOURCE]}, "init_images"),
        ("/api/v1/generate", {"init_images": ["nonsense"]}, "init_images"),
        ("/api/v1/generate", {"resolution": 64, "upscale": 2}, "upscale"),
        ("/api/v1/generate", {"resolution": 8000}, "resolution"),
        ("/api/v1/generate", {"resolution": 15}, "resolution"),
        ("/api/v1/generate", {"resolution": "2x"}, "resolution"),
        ("/api/v1/generate", {"upscale": 0}, "upscale"),
        ("/api/v1/generate", {"upscale": 8.5}, "upscale"),
        ("/api/v1/generate", {"softness": -0.1}, "softness"),
        ("/sdapi/v1/img2img", {"softness": 1.5, "width": 500}, "softness"),
        ("/api/v1/generate", {"lora_files": ["style"]}, "lora_files"),
        ("/api/v1/generate", {"prompt": "a <lora:style>"}, "lora_files"),
        ("/api/v1/generate", {"model": "demo"}, "prompt"),
    ],
)
def test_what_an_upscaler_cannot_do_is_one_clear_error(
    client: httpx.Client, path: str, fields: dict[str, Any], field: str
) -> None:
    answer = client.post(path, json={**UPSCALE, **fields})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER"), answer.text[:300]
    assert answer.json()["details"]["field"] == field


def test_waiting_job_still_has_its_image_after_a_restart(server: Server, client: httpx.Client) -> None:
    folder = server.folder / "second"
    config = CONFIG.replace('path = "', f'path = "{server.folder}/')
    with serving(folder, config) as first, api_client(first.url) as before:
        ahead = before.post("/api/v1/generate", json={**UPSCALE, "num_images": 4, "upscale": 8}).json()["job_id"]
        job_id = before.post("/api/v1/generate", json=UPSCALE).json()["job_id"]
        first.process.kill()
        first.process.wait()
    with serving(folder, config) as second, api_client(second.url) as after:
        after.delete(f"/api/v1/jobs/{ahead}").raise_for_status()
        job = wait_for_end(after, job_id)
        assert job["status"] == "completed"
        assert to_image(job["result"]["images"][0]).size == (96, 64)
        assert job["result"]["images"] == post(client, "img2img", **UPSCALE)["images"]


def test_model_list_says_what_it_is(client: httpx.Client) -> None:
    models = {model["title"]: model for model in client.get("/api/v1/models").json()["models"]}
    seedvr2 = models["seedvr2"]
    assert (seedvr2["downloaded"], seedvr2["default_steps"], seedvr2["config"]["base_arch"]) == (True, 1, "seedvr2")
    assert seedvr2["hash"]
    assert client.post("/api/v1/models/seedvr2/load").json()["status"] == "loaded"


# --- A1111's extras ---


def test_upscalers_are_listed_as_a1111_lists_them(client: httpx.Client) -> None:
    listed = client.get("/sdapi/v1/upscalers").json()
    assert [upscaler["name"] for upscaler in listed] == ["None", "Lanczos", "Nearest", "seedvr2"]
    assert {tuple(upscaler) for upscaler in listed} == {("name", "model_name", "model_path", "model_url", "scale")}


def test_single_image_is_upscaled_by_the_model_as_the_model_itself_does(client: httpx.Client) -> None:
    answer = post(client, "extra-single-image", image=SOURCE, upscaler_1="SeedVR2", upscaling_resize=2, seed=1)
    said = "Postprocess upscale by: 2, Postprocess upscaler: seedvr2, Seed: 1, Softness: 0"
    assert answer["html_info"] == f"<p>{said}</p>"
    assert to_image(answer["image"]).info["postprocessing"] == said
    assert to_image(answer["image"]).tobytes() == to_image(post(client, "img2img", **UPSCALE)["images"][0]).tobytes()
    same = [post(client, "extra-single-image", image=SOURCE, upscaler_1="seedvr2")["image"] for _ in range(2)]
    assert same[0] == same[1] != answer["image"]


def test_single_image_comes_in_exactly_the_size_that_is_asked_for(client: httpx.Client) -> None:
    size = {"resize_mode": 1, "upscaling_resize_w": 71, "upscaling_resize_h": 77}
    for upscaler in ("seedvr2", "Nearest"):
        cropped = post(client, "extra-single-image", image=SOURCE, upscaler_1=upscaler, **size)
        whole = post(client, "extra-single-image", image=SOURCE, upscaler_1=upscaler, upscaling_crop=False, **size)
        assert (to_image(cropped["image"]).size, to_image(whole["image"]).size) == ((71, 77), (116, 77))


def test_plain_upscalers_need_no_model_and_leave_no_job(client: httpx.Client) -> None:
    before = client.get("/api/v1/jobs").json()
    plain = {
        name: post(client, "extra-single-image", image=f"data:image/png;base64,{SOURCE}", upscaler_1=name)["image"]
        for name in (None, "None", "Lanczos", "nearest")
    }
    assert {to_image(image).size for image in plain.values()} == {(96, 64)}
    assert (
        to_image(plain["Lanczos"]).tobytes() == to_image(plain[None]).tobytes() != to_image(plain["nearest"]).tobytes()
    )
    assert client.get("/api/v1/jobs").json() == before


def test_batch_keeps_its_order_and_blends_two_upscalers(client: httpx.Client) -> None:
    files = [{"data": to_base64(scene((size, 32))), "name": f"{size}.png"} for size in (32, 48)]
    made = post(
        client,
        "extra-batch-images",
        imageList=files,
        upscaler_1="seedvr2",
        upscaler_2="Lanczos",
        extras_upscaler_2_visibility=1,
    )
    plain = post(client, "extra-batch-images", imageList=files, upscaler_1="Lanczos")
    assert [to_image(image).size for image in made["images"]] == [(64, 64), (96, 64)]
    assert [to_image(image).tobytes() for image in made["images"]] == [
        to_image(image).tobytes() for image in plain["images"]
    ]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("single-image", {}, "image"),
        ("single-image", {"image": "nonsense"}, "image"),
        ("single-image", {"image": SOURCE, "upscaler_1": "ESRGAN_4x"}, "upscaler_1"),
        ("single-image", {"image": SOURCE, "upscaler_1": "demo"}, "upscaler_1"),
        ("single-image", {"image": SOURCE, "upscaler_2": "ESRGAN_4x"}, "upscaler_2"),
        ("single-image", {"image": SOURCE, "upscaling_resize": 9}, "upscaling_resize"),
        ("single-image", {"image": SOURCE, "resize_mode": 2}, "resize_mode"),
        ("batch-images", {}, "imageList"),
        ("batch-images", {"imageList": []}, "imageList"),
        ("batch-images", {"imageList": [{"name": "a.png"}]}, "data"),
        ("batch-images", {"imageList": [{"data": SOURCE}, {"data": "nonsense"}]}, "imageList"),
        ("batch-images", {"imageList": [{"data": SOURCE}] * 9, "resize_mode": 1,
                          "upscaling_resize_w": 3900, "upscaling_resize_h": 2600}, "imageList"),
    ],
)  # fmt: skip
def test_bad_extras_are_one_clear_error_and_no_job(
    client: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    before = client.get("/api/v1/jobs").json()
    answer = client.post(f"/sdapi/v1/extra-{path}", json={"upscaler_1": "seedvr2", **body})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER"), answer.text[:300]
    assert answer.json()["details"]["field"] == field
    assert client.get("/api/v1/jobs").json() == before


def test_batch_that_does_not_fit_the_queue_leaves_nothing_in_it(client: httpx.Client) -> None:
    body = {"imageList": [{"data": SOURCE}] * 64, "upscaler_1": "seedvr2", "upscaler_2": "seedvr2"}
    answer = client.post("/sdapi/v1/extra-batch-images", json={**body, "extras_upscaler_2_visibility": 0.5})
    assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_JOBS"), answer.text[:300]
    while client.get("/api/v1/queue").json()["queued"]:
        pass
    assert post(client, "extra-single-image", image=SOURCE, upscaler_1="seedvr2")["image"]


def test_cancel_of_an_extra_by_another_client_is_a_conflict(server: Server, client: httpx.Client) -> None:
    large = to_base64(Image.effect_noise((112, 112), 50))
    answers = []
    with api_client(server.url) as other:
        body = {"image": large, "upscaler_1": "seedvr2"}
        asking = threading.Thread(target=lambda: answers.append(other.post("/sdapi/v1/extra-single-image", json=body)))
        asking.start()
        while (active := client.get("/api/v1/queue").json()["active"]) is None:
            pass
        client.delete(f"/api/v1/jobs/{active['job_id']}").raise_for_status()
        asking.join()
    assert (answers[0].status_code, answers[0].json()["code"]) == (409, "JOB_CANCELLED")
