"""Edits: ``POST /sdapi/v1/img2img`` and init images on ``POST /api/v1/generate``."""

import json
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops

from tests.support.api_jobs import wait_for_end
from tests.support.sample_images import scene, to_base64, to_image

pytestmark = pytest.mark.slow

STEPS = 4
SMALL: dict[str, Any] = {"prompt": "make it night", "model": "demo", "seed": 1, "steps": STEPS}


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference in levels."""
    histogram = ImageChops.difference(one, other).convert("L").histogram()
    return sum(level * count for level, count in enumerate(histogram)) / (one.width * one.height)


def edit(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/sdapi/v1/img2img", json={**SMALL, "init_images": [to_base64(scene())], **fields})
    assert answer.status_code == 200, answer.text[:300]
    body: dict[str, Any] = answer.json()
    return body


def test_size_is_the_first_images_and_strength_three_quarters(client: httpx.Client) -> None:
    answer = edit(client)
    assert to_image(answer["images"][0]).size == (80, 64)
    expected = {"width": 80, "height": 64, "image_strength": 0.75, "steps": 4, "steps_run": 3, "guidance": 1.0}
    assert answer["parameters"].items() >= expected.items()
    assert answer["info"].startswith("Generated 1 image(s) in ")


def test_strength_goes_from_the_image_itself_to_pure_noise(client: httpx.Client) -> None:
    results = {strength: to_image(edit(client, image_strength=strength)["images"][0]) for strength in (0, 0.25, 1)}
    # At 0 all that is left is the VAE's round trip.
    assert difference(results[0], scene()) < 12
    assert difference(results[0], scene()) < difference(results[0.25], scene()) < difference(results[1], scene())


def test_night_is_dark(client: httpx.Client) -> None:
    size = {"width": 128, "height": 128}
    house = {**SMALL, **size, "prompt": "a red house on the left"}
    day = client.post("/sdapi/v1/txt2img", json=house).json()["images"][0]
    night = edit(client, init_images=[day], image_strength=1)["images"][0]
    before, after = (sum(to_image(text).convert("L").tobytes()) / 128**2 for text in (day, night))
    assert after < before - 30


def test_reference_counts_also_at_strength_1(client: httpx.Client) -> None:
    one = edit(client, image_strength=1, width=64, height=64)
    other_image = to_base64(Image.new("RGB", (80, 64), (200, 30, 30)))
    other = edit(client, image_strength=1, width=64, height=64, init_images=[other_image])
    assert difference(to_image(one["images"][0]), to_image(other["images"][0])) > 1


def test_up_to_four_references_each_with_an_effect_and_in_their_order(client: httpx.Client) -> None:
    colours = ((250, 20, 20), (20, 250, 20), (20, 20, 250))
    images = [to_base64(scene()), *(to_base64(Image.new("RGB", (64, 64), colour)) for colour in colours)]
    made = [edit(client, steps=1, image_strength=1, init_images=images[:count])["images"][0] for count in (1, 2, 3, 4)]
    swapped = [images[0], images[2], images[1], images[3]]
    made.append(edit(client, steps=1, image_strength=1, init_images=swapped)["images"][0])
    assert len({to_image(text).tobytes() for text in made}) == 5
    answer = client.post("/sdapi/v1/img2img", json={**SMALL, "init_images": [*images, images[0]]})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "init_images")


def test_denoising_strength_is_the_same_and_image_strength_wins(client: httpx.Client) -> None:
    assert edit(client, denoising_strength=0.5)["parameters"]["steps_run"] == 2
    assert edit(client, denoising_strength=0.5, image_strength=0.25)["parameters"]["steps_run"] == 1
    a1111 = edit(client, denoising_strength="0.5", sampler_name="Euler", width=None)
    info = json.loads(a1111["info"])
    assert (a1111["parameters"]["steps_run"], info["denoising_strength"]) == (2, 0.5)
    assert "Denoising strength: 0.5" in info["infotexts"][0]


def test_same_request_gives_same_bytes_as_data_url_too(client: httpx.Client) -> None:
    assert edit(client)["images"] == edit(client, init_images=[f"data:image/png;base64,{to_base64(scene())}"])["images"]


def test_size_that_is_asked_for_counts_more_than_the_init_images(client: httpx.Client) -> None:
    assert to_image(edit(client, width=64, height=128)["images"][0]).size == (64, 128)
    one_side = edit(client, width=128)["parameters"]
    assert (one_side["width"], one_side["height"]) == (128, 64)


def test_each_image_of_a_batch_is_its_single_run(client: httpx.Client) -> None:
    two = [to_image(text) for text in edit(client, num_images=2)["images"]]
    alone = to_image(edit(client, seed=2)["images"][0])
    assert difference(two[1], alone) <= 1
    assert difference(two[0], two[1]) > 1


def test_edit_works_with_a_lora_and_on_a_base_model(client: httpx.Client) -> None:
    plain = edit(client, model="demo-base", guidance=2.5, steps=2)
    lora = edit(client, model="demo-base", guidance=2.5, steps=2, lora_files=["one"])
    assert plain["parameters"]["guidance"] == 2.5
    assert difference(to_image(plain["images"][0]), to_image(lora["images"][0])) > 1


def test_generate_takes_init_images_and_counts_the_steps_that_run(client: httpx.Client) -> None:
    body = {**SMALL, "init_images": [to_base64(scene())], "image_strength": 0.5}
    job_id = client.post("/api/v1/generate", json=body).json()["job_id"]
    with client.stream(
        "GET", f"/api/v1/jobs/{job_id}/stream", params={"images": "url"}, headers={"Last-Event-ID": "x"}
    ) as stream:
        events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    assert {event["steps"] for event in events[:-1]} == {2}
    assert events[-2]["progress"] == 1.0
    job = wait_for_end(client, job_id)
    assert to_image(job["result"]["images"][0]).size == (80, 64)
    assert edit(client, image_strength=0.5)["images"] == job["result"]["images"]


def test_strength_0_as_a_job_reaches_its_end(client: httpx.Client) -> None:
    body = {**SMALL, "init_images": [to_base64(scene())], "image_strength": 0}
    job = wait_for_end(client, client.post("/api/v1/generate", json=body).json()["job_id"])
    assert (job["status"], job["progress"], len(job["result"]["images"])) == ("completed", 1.0, 1)


def test_txt2img_ignores_init_images_and_strengths(client: httpx.Client) -> None:
    size = {"width": 64, "height": 64}
    plain = client.post("/sdapi/v1/txt2img", json={**SMALL, **size}).json()
    more = {"init_images": ["nonsense"], "denoising_strength": 0.3}
    assert client.post("/sdapi/v1/txt2img", json={**SMALL, **size, **more}).json()["images"] == plain["images"]


@pytest.mark.parametrize("path", ["/sdapi/v1/img2img", "/api/v1/generate"])
@pytest.mark.parametrize(
    "bad",
    [
        "",
        "aGk=",
        "no base64!",
        "https://example.com/a.png",
        to_base64(scene())[:100],
        to_base64(Image.new("L", (8, 8))),
    ],
)
def test_image_that_cannot_be_used_is_one_clear_error_and_no_job(client: httpx.Client, path: str, bad: str) -> None:
    before = client.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"]
    answer = client.post(path, json={**SMALL, "init_images": [to_base64(scene()), bad]})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
    assert answer.json()["error"].startswith("'init_images' is invalid: image 2 ")
    assert answer.json()["details"].items() >= {"field": "init_images", "index": 1}.items()
    assert client.get("/api/v1/jobs", params={"limit": 1}).json()["jobs"] == before


@pytest.mark.parametrize("images", [None, [], "text", [5], [None], {"0": "x"}])
def test_img2img_needs_init_images(client: httpx.Client, images: Any) -> None:
    answer = client.post("/sdapi/v1/img2img", json={**SMALL, "init_images": images})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "init_images")
